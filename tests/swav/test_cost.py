"""What a plan is said to cost is what it costs, byte by byte; its curve is the schedule's."""

import numpy as np
import pytest
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.optim.optimizer import make_optimizer
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.cost import (
    MicroBatchCost,
    learning_rates,
    micro_batch_cost,
    pretrain_memory,
    published_recipe,
    sparkline,
)
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.model import SwAV
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks import TaskContext

CPU = torch.device("cpu")


def made(arch="unfreeze/tiny", images=1000, processes=1, **given):
    network = build(arch)
    width = remove_head(network)
    facts = DatasetStats(images, 20, "cpu", width, processes)
    chosen = plan(PretrainSettings(arch=arch, **given), facts)
    s = chosen.settings
    model = SwAV(network, width, hidden=64, feat_dim=s.feat_dim, prototypes=s.nmb_prototypes)
    return model, chosen


def really_kept(model, chosen, rows, precision):
    """Bytes that autograd holds after a real forward pass, parameters and inputs left out."""
    s = chosen.settings
    views = [torch.randn(rows, 3, spec.size, spec.size) for spec in view_specs(s)]
    views = [view.to(memory_format=torch.channels_last) for view in views]
    own = (*model.parameters(), *model.buffers(), *views)
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    held = {}

    def take(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(take, lambda tensor: tensor):
        with autocast(CPU, precision):
            _, scores = model(views)
        by_view = list(scores.chunk(len(views)))
        codes = [torch.zeros_like(by_view[0]) for _ in s.crops_for_assign]
        loss = swapped_prediction_loss(by_view, codes, s.crops_for_assign)
    assert loss.grad_fn is not None
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize(
    "arch, rows, precision",
    [
        ("unfreeze/tiny", 4, "fp32"),
        ("unfreeze/tiny", 6, "bf16"),
        ("mobilenet_v3_small", 6, "fp32"),
        ("resnet18", 4, "bf16"),
    ],
)
def test_the_bytes_kept_for_the_backward_pass_are_counted_without_arithmetic(arch, rows, precision):
    given = {"size_crops": (32, 16), "nmb_crops": (2, 1), "batch_size": 12}
    given |= {"min_scale_crops": (0.2, 0.1), "max_scale_crops": (1.0, 0.2)}
    model, chosen = made(arch, **given)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    width = next(model.projection_head.parameters()).shape[1]
    context = TaskContext(model.backbone, width, chosen.settings, np.arange(100), Distributed())
    task = SwAVTask(context)
    task.model = model
    work = micro_batch_cost(task, chosen, rows=rows, device=CPU, precision=precision)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    # in bf16 libraries keep a little of their own
    inexact = 0.01 if precision == "bf16" else 0.0
    real = really_kept(model, chosen, rows, precision)
    assert work.activations == pytest.approx(real, rel=inexact, abs=0) and work.operations > 0


@pytest.mark.parametrize("optimizer", ["adamw", "larc", "sgd"])
def test_the_optimizers_bytes_are_those_it_keeps(optimizer):
    model, chosen = made(optimizer=optimizer, batch_size=16)
    counted = pretrain_memory(model, chosen, MicroBatchCost(1000, 0), share=16, processes=1)
    update = make_optimizer(optimizer, model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update.step()
    kept = [v for state in update.state.values() for v in state.values() if torch.is_tensor(v)]
    assert counted.optimizer == sum(v.numel() * v.element_size() for v in kept if v.ndim)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert counted.gradients == counted.parameters == gradients
    assert counted.total == sum(
        (counted.parameters, counted.gradients, counted.optimizer, counted.inputs, 1000)
    ) + (counted.codes)


def test_shares_parts_and_queue_are_in_the_sum():
    # a batch of 32 in two processes of two parts each
    given = {"batch_size": 32, "accumulate": 2, "queue_length": 64, "nmb_prototypes": 40}
    model, chosen = made(processes=2, **given)
    counted = pretrain_memory(model, chosen, MicroBatchCost(0, 0), share=16, processes=2)
    pixels = 3 * 16**2 * 2
    assert [spec.size for spec in view_specs(chosen.settings)] == [16, 16]
    assert counted.inputs == 8 * pixels * 4 + 16 * pixels
    assert counted.codes == 4 * (3 * (16 + 32) * 40 + 2 * 32 * 128)
    assert counted.gradients == 2 * counted.parameters


def test_ten_points_of_the_learning_rate_from_the_first_step_to_the_last():
    _, chosen = made(epochs=20, warmup_epochs=2, base_lr=0.5, final_lr=0.001, start_warmup=0.1)
    points = learning_rates(chosen)
    assert len(points) == 10
    assert points[0] == (0, 0.1) and points[-1][0] == chosen.steps - 1
    assert all(rate == pytest.approx(chosen.learning_rate(s), rel=1e-5) for s, rate in points)
    assert max(rate for _, rate in points) <= 0.5 and points[-1][1] == pytest.approx(
        0.001, abs=1e-3
    )


def test_a_run_of_no_or_few_steps_has_as_many_points():
    _, none = made(epochs=0, warmup_epochs=0)
    assert learning_rates(none) == [] and sparkline([]) == ""
    _, few = made(images=40, batch_size=20, epochs=2, warmup_epochs=0)
    assert [step for step, _ in learning_rates(few)] == [0, 1, 2, 3]


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▁▁" and sparkline([7, 0]) == "█▁"


@pytest.mark.parametrize(
    "given, name",
    [
        ({}, "swav-200ep-bs256"),
        ({"batch_size": 512}, "swav-200ep-bs256"),
        ({"batch_size": 2048}, "swav-100ep"),
        ({"recipe": "swav-400ep-2x224"}, "swav-400ep-2x224"),
    ],
)
def test_the_published_recipe_beside_it_is_its_own_or_the_nearer_one(given, name):
    found, values = published_recipe(PretrainSettings(**given))
    assert found == name and values["nmb_prototypes"] == 3000
    assert values["epochs"] == int(name.split("-")[1].removesuffix("ep"))
