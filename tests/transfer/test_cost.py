"""What a fine-tuning costs: counted by phases, with and without kept features."""

from dataclasses import replace

import pytest
from torch import nn

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.models.layer_costs import network_cost
from unfreeze.transfer.cost import CostInput, finetune_memory, training_cost
from unfreeze.transfer.freezing.freeze import FreezeSchedule, constant_schedule

S = FinetuneSettings(
    data=("x",),
    image_size=8,
    epochs=10,
    batch_size=4,
    optimizer="sgd",
    cache="off",
    precision="fp32",
    lr=0.1,
)
HEAD = ["3.weight", "3.bias"]


@pytest.fixture(scope="module")
def case():
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    return CostInput(own, constant_schedule(()), HEAD, images=100, held_out=20)


def frozen(case, *steps):
    still = frozenset(n for n, _ in case.network.named_parameters() if n not in HEAD)
    schedule = FreezeSchedule(steps) if steps else constant_schedule(still)
    return replace(case, schedule=schedule), still


def test_everything_trained_is_epochs_times_images(case):
    work, found = network_cost(case.network, (), 8), training_cost(S, case)
    assert found.training == 10 * 100 * work.training
    assert found.evaluation == 10 * 20 * work.forward and found.views == 1000
    assert training_cost(replace(S, epochs=20), case).operations == 2 * found.operations
    assert training_cost(S, replace(case, runs=3)).operations == 3 * found.operations


def test_a_solved_head_costs_one_pass_a_view(case):
    own, still = frozen(case)
    work = network_cost(own.network, still, 8)
    solved = replace(S, epochs=1, head_solver="logistic", cache="features", cache_views=2)
    found = training_cost(solved, own)
    assert found.training == 0 and found.evaluation == work.forward * (2 * 100 + 20)
    assert found.views == 200
    held = finetune_memory(solved, own, found)
    assert held.gradients == held.optimizer == 0 < held.activations


def test_kept_features_spare_what_is_frozen(case):
    own, still = frozen(case)
    kept, off = (
        training_cost(replace(S, cache="features", cache_views=4), own),
        training_cost(S, own),
    )
    assert (
        kept.views == 400
        and kept.evaluation > 4 * 100 * network_cost(own.network, still, 8).forward
    )
    assert kept.operations < off.operations


def test_a_thawing_network_is_counted_by_its_stretches(case):
    _, still = frozen(case)
    own, _ = frozen(case, (0, still), (7, frozenset()))
    early, late = network_cost(case.network, still, 8), network_cost(case.network, (), 8)
    assert training_cost(S, own).training == 100 * (7 * early.training + 3 * late.training)


def test_memory_is_counted_in_bytes(case):
    weights = 4 * sum(p.numel() for p in case.network.parameters())
    case = replace(case, held_out=0)
    held = finetune_memory(S, case, training_cost(S, case))
    assert held.parameters == held.gradients == held.optimizer == weights
    adam = finetune_memory(replace(S, optimizer="adamw"), case, training_cost(S, case))
    assert adam.optimizer == 2 * weights and adam.total == held.total + weights
    more = replace(S, batch_size=64)
    assert (
        finetune_memory(more, case, training_cost(more, case)).activations
        == 16 * held.activations
        > 0
    )
