"""A gradient that is not a number changes nothing; a loss that is not one ends the run."""

import copy
import math

import numpy as np
import pytest
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DivergedError
from unfreeze.models.small import tiny
from unfreeze.runs.pretraining.setup import CallbackOptions, build_trainer
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import RunFolder, read_metrics
from unfreeze.swav import assignment as assigner_module
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.sinkhorn import sinkhorn
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks import TaskContext
from unfreeze.training import nan_guard as guard_module
from unfreeze.training.compute import ComputeContext
from unfreeze.training.nan_guard import NanGuard, revert_if

GIVEN = {
    "epochs": 2,
    "batch_size": 16,
    "nmb_prototypes": 12,
    "queue_length": 32,
    "epoch_queue_starts": 0,
    "freeze_prototypes_niters": 1,
    "warmup_epochs": 0,
    "augment": "digits",
    "size_crops": (16,),
    "nmb_crops": (2,),
    "min_scale_crops": (0.3,),
    "max_scale_crops": (1.0,),
    "feat_dim": 8,
    "hidden_mlp": 16,
    "base_lr": 0.01,
    "sync_bn": "none",
}


class Hears(QuietConsole):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def made(folder, processes=None, precision="fp32", **changed):
    torch.manual_seed(0)
    processes = processes or Distributed()
    chosen = plan(PretrainSettings(**{**GIVEN, **changed}), DatasetStats(128, 8, "cpu", 128))
    s = chosen.settings
    network = tiny()
    network.head = torch.nn.Identity()
    loader = Loader(
        ImageDataset(build_index(open_source("digits"))),
        MultiCropTransform(0, view_specs(s)),
        batch_size=s.batch_size,
        seed=0,
        drop_last=True,
        positions=np.arange(128),
        rank=processes.rank,
        world=processes.world,
    )
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder, writes=processes.is_rank_zero)
    compute = ComputeContext(torch.device("cpu"), precision, MEAN, STD)
    context = TaskContext(network, 128, s, loader.positions, processes)
    return build_trainer(
        SwAVTask(context),
        chosen,
        loader,
        run,
        compute,
        processes=processes,
        options=CallbackOptions(),
    )


def everything(trainer):
    """Clones of all that a step may move."""
    found = {f"model.{k}": v.clone() for k, v in trainer.state.model.state_dict().items()}
    for number, kept in trainer.state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{k}": v.clone() for k, v in kept.items()}
    if trainer.task.assignment.queue is not None:
        found |= {"queue": trainer.task.assignment.queue.features.clone()}
        found["filled"] = torch.tensor(trainer.task.assignment.queue.filled)
    return found


def changed(before, after):
    # prototypes are put on the sphere before a step looks at its batch
    name = "model.prototypes.weight"
    before[name] = torch.nn.functional.normalize(before[name], dim=1)
    return [k for k in after if k not in before or not torch.equal(before[k], after[k])]


def breaks_at(trainer, bad_steps, value=math.nan):
    """The gradient of one weight is `value` in those steps (from 0); all that moved is kept."""
    moved, original = {}, trainer.train_step
    weight = next(trainer.state.model.backbone.parameters())

    def broken(gradient):
        return torch.full_like(gradient, value) if trainer.step in bad_steps else gradient

    def step(batch):
        before = everything(trainer)
        result = original(batch)
        moved[trainer.step] = changed(before, everything(trainer))
        return result

    weight.register_hook(broken)
    trainer.train_step = step
    return moved


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("optimizer", ["larc", "adamw", "sgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_bad_gradient_changes_nothing(tmp_path, prompt, optimizer, value):
    """Told at once, or only by the device: at the first step, while the queue fills, and after."""
    trainer = made(tmp_path, optimizer=optimizer)
    trainer.guard.prompt = prompt
    bad = {0, 2, 9}
    moved = breaks_at(trainer, bad, value)
    console = Hears()
    trainer.fit(console)
    assert [moved[k] for k in sorted(bad)] == [[], [], []]
    assert all(len(moved[k]) > 20 for k in range(16) if k not in bad)
    assert all(torch.isfinite(t).all() for t in everything(trainer).values())
    # 32 features at 16 a step: full after two good steps
    assert trainer.task.assignment.queue.full
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 17))
    skipped = [r for r in records if r["split"] == "skipped"]
    assert [(r["step"], r["epoch"]) for r in skipped] == [(1, 0), (3, 0), (10, 1)]
    for record in skipped:
        names = trainer.loader.paths(record["step"] - 1)
        assert record["files"] == names and len(names) == 16
        assert (
            f"step {record['step']}: non-finite gradient (NaN or inf)"
            in trainer.run.file("log.txt").read_text()
        )
        assert all(name in trainer.run.file("log.txt").read_text() for name in names)
    assert len(console.said) == 1 and "Step 1 skipped" in console.said[0]
    assert trainer.loader.paths(0)[0] in console.said[0] and "and 13 more" in console.said[0]


def test_told_at_once_and_told_later_are_the_same_run(tmp_path):
    runs = []
    for prompt in (True, False):
        trainer = made(tmp_path / str(prompt), optimizer="adamw")
        trainer.guard.prompt = prompt
        breaks_at(trainer, {1, 7, 8})
        trainer.fit(QuietConsole())
        runs.append(everything(trainer))
    assert runs[0].keys() == runs[1].keys()
    assert [k for k in runs[0] if not torch.equal(runs[0][k], runs[1][k])] == []


def test_without_the_guard_the_weights_are_lost(tmp_path, monkeypatch):
    # that the tests above can fail
    monkeypatch.setattr(NanGuard, "judged", lambda self: torch.tensor(False))
    trainer = made(tmp_path, optimizer="sgd")
    breaks_at(trainer, {5})
    with pytest.raises(DivergedError):
        trainer.fit(QuietConsole())
    assert not all(torch.isfinite(p).all() for p in trainer.state.model.parameters())


@pytest.mark.parametrize("prompt", [True, False])
def test_too_many_in_a_row_end_the_run(tmp_path, monkeypatch, prompt):
    monkeypatch.setattr(guard_module, "IN_A_ROW", 3)
    trainer = made(tmp_path)
    trainer.guard.prompt = prompt
    breaks_at(trainer, {2, 3, 4, 6, 9, 10, 11, 12, 13})
    with pytest.raises(DivergedError, match=r"4 steps in a row .* step 13 ") as error:
        trainer.fit(QuietConsole())
    assert error.value.exit_code == 5 and trainer.loader.paths(12)[0] in error.value.sentence
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["step"] == 8
    assert all(torch.isfinite(t).all() for t in saved["model"].values())


def poisoned(trainer, step, how):
    original = trainer.train_step

    def stepping(batch):
        if trainer.step == step and how == "weight":
            with torch.no_grad():
                next(trainer.state.model.backbone.parameters())[0, 0, 0, 0] = math.inf
        if trainer.step == step and how == "image":
            batch.views[0][0].fill_(math.nan)
        return original(batch)

    if how == "loss":
        loss_of = trainer.task.assignment.loss
        trainer.task.assignment.loss = lambda *given: (
            loss_of(*given) * (math.nan if trainer.step == step else 1.0)
        )
    trainer.train_step = stepping


@pytest.mark.parametrize("how", ["loss", "weight", "image"])
@pytest.mark.parametrize("prompt", [True, False])
def test_a_loss_that_is_no_number_ends_the_run_and_is_named(tmp_path, how, prompt):
    trainer = made(tmp_path)
    trainer.guard.prompt = prompt
    if how == "image":  # views travel as numbers that can be none
        cut = trainer.loader.dataset.make
        trainer.loader.dataset.make = lambda *given: [view.float() for view in cut(*given)]
    poisoned(trainer, 10, how)
    with pytest.raises(DivergedError, match=r"The loss was (nan|inf) at step 11 ") as error:
        trainer.fit(QuietConsole())
    assert trainer.loader.paths(10)[0] in error.value.sentence
    assert "and 13 more" in error.value.sentence and error.value.exit_code == 5
    last = read_metrics(tmp_path)[-1]
    assert (last["step"], last["split"]) == (11, "skipped")
    assert last["files"] == trainer.loader.paths(10)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["step"] == 8 and math.isfinite(saved["loss"])
    assert all(torch.isfinite(t).all() for t in saved["model"].values())
    if how != "weight":  # what the step saw is not in the statistics either
        assert all(torch.isfinite(t).all() for t in everything(trainer).values())


def test_a_broken_loss_is_found_before_a_checkpoint(tmp_path):
    trainer = made(tmp_path)
    trainer.guard.prompt = False
    trainer.record = lambda *_: {}  # as between two records of a long run
    poisoned(trainer, 3, "loss")
    with pytest.raises(DivergedError, match="at step 4 "):
        trainer.fit(QuietConsole())
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_accumulated_steps_are_guarded_too(tmp_path):
    trainer = made(tmp_path, accumulate=2)
    moved = breaks_at(trainer, {0, 5})
    trainer.fit(QuietConsole())
    assert moved[0] == moved[5] == []


@pytest.mark.parametrize("bad", [True, False])
def test_choosing_is_exact_to_the_bit(bad):
    g = torch.Generator().manual_seed(0)
    new = [
        torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-45]),
        torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
        torch.randn(7, generator=g, dtype=torch.float64),
        torch.randn(7, generator=g).bfloat16(),
        torch.tensor(5),
    ]
    old = [torch.empty_like(t).copy_(torch.randn(t.shape, generator=g)) for t in new]
    old[0][:2] = torch.tensor([-0.0, math.nan])
    expected = copy.deepcopy(old if bad else new)
    revert_if(new, old, torch.tensor(bad))
    for mine, theirs in zip(new, expected, strict=True):
        assert mine.stride() == theirs.stride()
        assert (
            torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
            if mine.ndim
            else torch.equal(mine, theirs)
        )


def _two(rank, folder):
    processes = init_distributed("cpu")
    trainer = made(folder, processes, optimizer="larc")
    weight = next(trainer.state.model.backbone.parameters())
    # only the second process meets it; the sum over both is broken in both
    weight.register_hook(lambda g: g * math.nan if rank and trainer.step in (2, 7) else g)
    trainer.fit(QuietConsole())
    return trainer.guard.skipped, {
        k: v.numpy() for k, v in trainer.state.model.state_dict().items()
    }


def test_what_one_of_two_processes_meets_both_leave_out(processes, tmp_path):
    (one, first), (two, second) = processes(2, _two, tmp_path)
    assert one == two == 2
    for name in first:
        if "running" not in name and "tracked" not in name:  # those are each process's own
            assert np.array_equal(first[name], second[name]) and np.isfinite(first[name]).all()
    skipped = [r for r in read_metrics(tmp_path) if r["split"] == "skipped"]
    assert [r["step"] for r in skipped] == [3, 8]
    assert all(len(r["files"]) == 16 for r in skipped)  # of the whole batch, not of one's share


# precision


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
def test_codes_and_loss_are_in_float32_whatever_the_network_computes_in(
    tmp_path, monkeypatch, precision
):
    seen = {"network": set(), "codes": set(), "loss": set()}

    def codes(scores, **options):
        found = sinkhorn(scores, **options)
        seen["codes"] |= {scores.dtype, found.dtype}
        return found

    def loss(scores, Q, views, **options):
        found = swapped_prediction_loss(scores, Q, views, **options)
        seen["loss"] |= {found.dtype, *(s.dtype for s in scores), *(q.dtype for q in Q)}
        return found

    monkeypatch.setattr(assigner_module, "sinkhorn", codes)
    monkeypatch.setattr(assigner_module, "swapped_prediction_loss", loss)
    trainer = made(tmp_path, precision=precision, epochs=1)
    trainer.state.model.projection_head[0].register_forward_hook(
        lambda module, given, out: seen["network"].add(out.dtype)
    )
    trainer.fit(QuietConsole())
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert seen == {"network": {kind}, "codes": {torch.float32}, "loss": {torch.float32}}
    assert trainer.task.assignment.queue.features.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trainer.state.model.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_pure_functions_keep_float32_inside_somebodys_autocast(kind):
    g = torch.Generator().manual_seed(0)
    Z = [torch.nn.functional.normalize(torch.randn(8, 5, generator=g), dim=1) for _ in range(2)]
    outside = [sinkhorn(z, epsilon=0.02) for z in Z]
    with torch.autocast("cpu", dtype=kind):
        inside = [sinkhorn(z, epsilon=0.02) for z in Z]
        loss = swapped_prediction_loss(Z, inside, [0, 1])
        assert sinkhorn(Z[0].to(kind)).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, swapped_prediction_loss(Z, outside, [0, 1]))


@pytest.mark.slow  # fp16 convolutions take seconds a step on a CPU
def test_fp16_scales_its_loss_and_finds_its_scale(tmp_path):
    trainer = made(tmp_path, precision="fp16", optimizer="adamw", base_lr=1e-3)
    assert trainer.state.scaler.is_enabled() and trainer.guard.prompt
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)
    moved = breaks_at(trainer, set())
    trainer.fit(QuietConsole())
    skipped = [r["step"] for r in read_metrics(tmp_path) if r["split"] == "skipped"]
    # halved at each step that overflows, doubled after three that do not, and halved again
    leading = sum(step == place for place, step in enumerate(skipped, 1))
    assert 1 <= leading < 10
    assert all(moved[k - 1] == [] for k in skipped) and moved[leading] != []
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert state["scaler"] == trainer.state.scaler.state_dict()
    assert state["scaler"]["scale"] < 2.0**18


@pytest.mark.slow  # fp16 convolutions take seconds a step on a CPU
def test_fp16_resumed_is_the_straight_run(tmp_path):
    straight = made(tmp_path / "straight", precision="fp16")
    straight.fit(QuietConsole())
    half = made(tmp_path / "run", precision="fp16")
    for batch in half.loader.stream(0, 5):
        half.train_step(batch)
        half.state.step += 1
    half.save()
    again = made(tmp_path / "run", precision="fp16")
    again.load_state_dict(torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True))
    again.fit(QuietConsole())
    one, two = everything(straight), everything(again)
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    assert straight.state.scaler.state_dict() == again.state.scaler.state_dict()
