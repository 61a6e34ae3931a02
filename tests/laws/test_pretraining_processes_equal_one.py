"""Two processes compute what one does: batch norm, codes, queue, gradients, and the whole run."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.models.norm import batchnorm_process_group, convert_sync_batchnorm
from unfreeze.runs.pretraining.resume import resume_notes
from unfreeze.runs.pretraining.setup import CallbackOptions, build_trainer
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.tasks import TaskContext
from unfreeze.tasks.registry import pretrain_task
from unfreeze.training.compute import ComputeContext

CLUSTERED = {
    "method": "deepcluster-v2",
    "queue_length": None,
    "epoch_queue_starts": None,
    "freeze_prototypes_niters": None,
    "clusterings": 3,
    "nmb_prototypes": 6,
}
CONTRASTIVE = {
    "method": "simclr",
    **dict.fromkeys(
        ("queue_length", "epoch_queue_starts", "freeze_prototypes_niters", "nmb_prototypes")
    ),
}
GIVEN = {
    "epochs": 2,
    "batch_size": 16,
    "nmb_prototypes": 12,
    "queue_length": 32,
    "epoch_queue_starts": 0,
    "freeze_prototypes_niters": 1,
    "warmup_epochs": 0,
    "augment": "digits",
    "size_crops": (16, 8),
    "nmb_crops": (2, 1),
    "min_scale_crops": (0.3, 0.1),
    "max_scale_crops": (1.0, 0.3),
    "feat_dim": 8,
    "hidden_mlp": 16,
    "sync_bn": "all",
}


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def trainer(processes, folder, steps_limit=64, **changed):
    """A trainer in float64 on the built-in digits, the same in any number of processes."""
    torch.manual_seed(0)
    facts = DatasetStats(steps_limit, 8, "cpu", 8, processes.world)
    chosen = plan(PretrainSettings(**{**GIVEN, **changed}), facts)
    s = chosen.settings
    context = TaskContext(network(), 8, s, np.arange(steps_limit), processes)
    task = pretrain_task(s.method)(context)
    task.model = task.model.double()
    if s.sync_bn != "none":
        task.model = convert_sync_batchnorm(task.model)
    loader = Loader(
        ImageDataset(build_index(open_source("digits"))),
        MultiCropTransform(0, view_specs(s)),
        batch_size=s.batch_size,
        seed=0,
        drop_last=True,
        positions=np.arange(steps_limit),
        rank=processes.rank,
        world=processes.world,
    )
    compute = ComputeContext(torch.device("cpu"), "fp32", MEAN, STD)
    folder.mkdir(exist_ok=True, parents=True)
    run = RunFolder(folder, writes=processes.is_rank_zero)
    options = CallbackOptions()
    return build_trainer(task, chosen, loader, run, compute, processes=processes, options=options)


def trained(rank, folder, changed):
    processes = init_distributed("cpu")
    made = trainer(processes, folder, **changed)
    made.fit(QuietConsole())
    return {name: tensor.numpy() for name, tensor in made.state.model.state_dict().items()}


def difference(one, two):
    """Relative, over everything that a step moves."""
    names = [name for name in one if not name.endswith("num_batches_tracked")]
    a = np.concatenate([one[name].ravel() for name in names])
    b = np.concatenate([two[name].ravel() for name in names])
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def alone(folder, **changed):
    made = trainer(Distributed(), folder, **changed)
    made.fit(QuietConsole())
    return made


@pytest.mark.parametrize("optimizer", ["larc", "adamw", "sgd"])
def test_one_process_equals_two_after_eight_steps_queue_included(processes, tmp_path, optimizer):
    changed = {"optimizer": optimizer, "base_lr": 0.01}
    one = alone(tmp_path / "one", **changed)
    assert one.step == 8 and one.task.assignment.queue.full
    joined = {name: tensor.numpy() for name, tensor in one.state.model.state_dict().items()}
    two, other = processes(2, trained, tmp_path / "two", changed)
    assert difference(two, other) == 0  # the processes hold the same network
    # Adam divides by the gradient's size: of a bias before batch norm it is rounding noise alone
    assert difference(joined, two) < (1e-7 if optimizer == "adamw" else 1e-9)
    saved = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        for name in ("one", "two")
    ]
    banks = [state["task"]["queue"] for state in saved]
    assert banks[0].shape == (2, 32, 8) and saved[1]["task"]["filled"] == 32
    assert (banks[0] - banks[1]).norm() / banks[0].norm() < (1e-7 if optimizer == "adamw" else 1e-9)
    losses = [[r["loss"] for r in RunFolder(tmp_path / n).metrics()] for n in ("one", "two")]
    assert np.allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_simclr_compares_the_images_of_all_processes(processes, tmp_path, optimizer):
    changed = {**CONTRASTIVE, "optimizer": optimizer, "base_lr": 0.01}
    one = alone(tmp_path / "one", **changed)
    joined = {name: tensor.numpy() for name, tensor in one.state.model.state_dict().items()}
    two, other = processes(2, trained, tmp_path / "two", changed)
    assert difference(two, other) == 0
    assert difference(joined, two) < (1e-7 if optimizer == "adamw" else 1e-9)
    losses = [[r["loss"] for r in RunFolder(tmp_path / n).metrics()] for n in ("one", "two")]
    assert np.allclose(*losses, rtol=1e-5)


def test_they_are_equal_while_the_backbone_is_frozen_and_after(processes, tmp_path):
    changed = {"optimizer": "sgd", "base_lr": 0.01, "layer_decay": 0.5}
    changed |= {"freeze_backbone_epochs": 1, "bn_statistics": "frozen"}
    one = alone(tmp_path / "one", **changed).state.model.state_dict()
    joined = {name: tensor.numpy() for name, tensor in one.items()}
    two, other = processes(2, trained, tmp_path / "two", changed)
    assert difference(two, other) == 0 and difference(joined, two) < 1e-9


def test_without_synchronised_batch_norm_they_differ(processes, tmp_path):
    # that the law above can fail
    changed = {"optimizer": "sgd", "base_lr": 0.01}
    one = alone(tmp_path / "one", **changed).state.model.state_dict()
    joined = {name: tensor.numpy() for name, tensor in one.items()}
    two, _ = processes(2, trained, tmp_path / "two", {**changed, "sync_bn": "none"})
    assert difference(joined, two) > 1e-4


def _resumed(rank, folder, changed):
    processes = init_distributed("cpu")
    made = trainer(processes, folder, **changed)
    from unfreeze.checkpoints.state import load_last

    state = load_last(folder / "checkpoints")[0]
    made.load_state_dict(state)
    notes = resume_notes(state, processes.world)
    made.fit(QuietConsole())
    return notes, {name: tensor.numpy() for name, tensor in made.state.model.state_dict().items()}


def test_a_run_begun_by_one_process_is_ended_by_two(processes, tmp_path):
    changed = {"optimizer": "larc", "base_lr": 0.01}
    straight = alone(tmp_path / "straight", **changed).state.model.state_dict()
    half = trainer(Distributed(), tmp_path / "run", **changed)
    for batch in half.loader.stream(0, 5):
        half.train_step(batch)
        half.state.step += 1
    half.save()
    (notes, two), (_, other) = processes(2, _resumed, tmp_path / "run", changed)
    assert len(notes) == 1 and notes[0].startswith("Processes: 1 before, 2 now.")
    joined = {name: tensor.numpy() for name, tensor in straight.items()}
    assert difference(joined, two) < 1e-9 and difference(two, other) == 0


@pytest.mark.parametrize(
    "method", [{}, CLUSTERED, CONTRASTIVE], ids=["swav", "deepcluster-v2", "simclr"]
)
@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_in_parts_equals_the_whole_but_for_batch_norm(processes, tmp_path, world, method):
    """With nothing that looks across images but the codes, --accumulate changes nothing."""

    def made(processes, parts):
        torch.manual_seed(0)
        built = trainer(
            processes, tmp_path / f"{world}-{parts}", accumulate=parts, base_lr=0.01, **method
        )
        for module in built.state.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, kept=module: kept
        return built

    def run(rank, parts):
        built = made(init_distributed("cpu") if world > 1 else Distributed(), parts)
        built.fit(QuietConsole())
        return {name: tensor.numpy() for name, tensor in built.state.model.state_dict().items()}

    if world == 1:
        whole, parts = run(0, 1), run(0, 4)
    else:
        whole, parts = processes(2, run, 1)[0], processes(2, run, 4)[0]
    assert difference(whole, parts) < 1e-9


def test_looking_ahead_leaves_running_statistics_be(tmp_path):
    made = trainer(Distributed(), tmp_path, accumulate=4)
    batch = next(made.loader.stream(0, 1))
    before = copy.deepcopy(made.state.model.state_dict())
    codes = made.task.share(
        [part.views for part in made.task.split_batch(batch, made.plan.accumulate, made.forward)],
        batch,
        made.forward,
    )
    assert [[tuple(Q.shape) for Q in part] for part in codes] == [[(4, 12)] * 2] * 4
    after = made.state.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    made.train_step(batch)
    assert not torch.equal(
        made.state.model.state_dict()["backbone.1.running_mean"], before["backbone.1.running_mean"]
    )


def _ids(rank, folder):
    processes = init_distributed("cpu")
    made = trainer(processes, folder)
    seen = []
    read = made.loader.dataset.images

    class Counted:
        index = read.index

        def __getitem__(self, i):
            seen.append(i)
            return read[i]

    made.loader.dataset.images = Counted()
    made.fit(QuietConsole())
    return seen


def test_a_process_reads_its_share_of_the_images_and_no_more(processes, tmp_path):
    shares = processes(2, _ids, tmp_path)
    assert [len(share) for share in shares] == [64, 64]  # 2 epochs of 64 images, by two
    for epoch in range(2):
        halves = [set(share[32 * epoch : 32 * epoch + 32]) for share in shares]
        assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 64


def _norm(rank, x, upstream, group_size):
    processes = init_distributed("cpu")
    torch.manual_seed(3)
    norm = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
    model = norm(x.shape[1]).double()
    nn.init.uniform_(model.weight)
    nn.init.uniform_(model.bias)
    plain = copy.deepcopy(model)
    group = batchnorm_process_group(group_size, processes.world, processes.rank)
    model = convert_sync_batchnorm(model, group)
    mine = x.chunk(processes.world)[rank].clone().requires_grad_()
    y = model(mine)
    y.backward(upstream.chunk(processes.world)[rank])
    grads = [g.clone() for g in (model.weight.grad, model.bias.grad)]
    for grad in grads:  # what DistributedDataParallel does, without its mean
        torch.distributed.all_reduce(grad, group=group)
    if rank:
        return [t.detach().numpy() for t in (y, mine.grad, *grads, model.running_var)], None
    whole = x.clone().requires_grad_()
    z = plain(whole)
    z.backward(upstream)
    expected = (z, whole.grad, plain.weight.grad, plain.bias.grad, plain.running_var)
    return (
        [t.detach().numpy() for t in (y, mine.grad, *grads, model.running_var)],
        [t.detach().numpy() for t in expected],
    )


@pytest.mark.parametrize("shape", [(12, 5), (8, 3, 4, 6)])
def test_synchronised_batch_norm_is_that_of_the_joined_batch(processes, shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 3 + 1
    upstream = torch.randn(shape, generator=g, dtype=torch.float64)
    (first, expected), (second, _) = processes(2, _norm, x, upstream, 0)
    for k in (0, 1):  # outputs and the input's gradient, by share
        assert np.abs(np.concatenate([first[k], second[k]]) - expected[k]).max() < 1e-12
    for k in (2, 3, 4):  # the parameters' gradients and the running variance, the same in both
        assert np.abs(first[k] - expected[k]).max() < 1e-12
        assert np.abs(second[k] - expected[k]).max() < 1e-12


def _shared_unevenly(rank, x, upstream, sizes, affine):
    init_distributed("cpu")
    model = convert_sync_batchnorm(nn.BatchNorm2d(x.shape[1], affine=affine))
    mine = x.split(sizes)[rank].clone().requires_grad_()
    model(mine).backward(upstream.split(sizes)[rank])
    return mine.grad.float().numpy(), model.running_mean.numpy(), model.running_var.numpy()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_uneven_shares_far_from_zero_are_normalised_together(processes, kind, affine):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(12, 3, 4, 6, generator=g) + 100).to(kind)
    upstream = torch.randn(x.shape, generator=g).to(kind)
    found = processes(2, _shared_unevenly, x, upstream, (9, 3), affine)
    plain = nn.BatchNorm2d(3, affine=affine).double()
    whole = x.double().requires_grad_()
    plain(whole).backward(upstream.double())
    gradient = np.concatenate([share[0] for share in found])
    assert np.abs(gradient - whole.grad.numpy()).max() < (1e-4 if kind == torch.float32 else 2e-2)
    for _, mean, variance in found:
        assert np.abs(mean - plain.running_mean.numpy()).max() < 1e-5
        assert np.abs(variance - plain.running_var.numpy()).max() < 1e-5


def test_batch_norm_in_groups_knows_its_own_group_only(processes):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(16, 5, generator=g, dtype=torch.float64)
    upstream = torch.randn(16, 5, generator=g, dtype=torch.float64)
    told = processes(4, _norm, x, upstream, 2)
    for pair in (0, 2):
        half = x[4 * pair : 4 * pair + 8]
        centred = np.concatenate([told[pair][0][0], told[pair + 1][0][0]])
        torch.manual_seed(3)
        plain = nn.BatchNorm1d(5).double()
        nn.init.uniform_(plain.weight)
        nn.init.uniform_(plain.bias)
        assert np.abs(centred - plain(half).detach().numpy()).max() < 1e-12


def test_one_process_equals_two_with_clusters_for_codes(processes, tmp_path):
    changed = {**CLUSTERED, "optimizer": "larc", "base_lr": 0.01}
    one = alone(tmp_path / "one", **changed)
    joined = {name: tensor.numpy() for name, tensor in one.state.model.state_dict().items()}
    two, other = processes(2, trained, tmp_path / "two", changed)
    assert difference(two, other) == 0
    assert difference(joined, two) < 1e-9
    kept = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["task"]
        for name in ("one", "two")
    ]
    assert kept[0]["memory"].shape == (2, 64, 8)
    assert torch.equal(kept[0]["labels"], kept[1]["labels"])
    assert (kept[0]["memory"] - kept[1]["memory"]).abs().max() < 1e-9
