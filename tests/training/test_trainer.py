"""The loop's promises, on a tiny network and the built-in digits."""

import json

import numpy as np
import pytest
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DivergedError
from unfreeze.models.small import tiny
from unfreeze.runs.pretraining.setup import CallbackOptions, build_trainer
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks import TaskContext
from unfreeze.training.callbacks import EpochCallback
from unfreeze.training.compute import ComputeContext

GIVEN = {
    "epochs": 3,
    "batch_size": 32,
    "nmb_prototypes": 16,
    "queue_length": 64,
    "epoch_queue_starts": 1,
    "freeze_prototypes_niters": 4,
    "warmup_epochs": 1,
    "augment": "digits",
    "feat_dim": 16,
    "hidden_mlp": 32,
}


@pytest.fixture(scope="module")
def images():
    return ImageDataset(build_index(open_source("digits")))


@pytest.fixture
def make(images, tmp_path):
    def made(**changed):
        torch.manual_seed(0)
        chosen = plan(PretrainSettings(**{**GIVEN, **changed}), DatasetStats(128, 8, "cpu", 128))
        s = chosen.settings
        network = tiny()
        network.head = torch.nn.Identity()
        loader = Loader(
            images,
            MultiCropTransform(0, view_specs(s)),
            batch_size=s.batch_size,
            seed=0,
            drop_last=True,
            positions=np.arange(128),
        )
        run = RunFolder.create(tmp_path / "run", resume="yes")
        context = TaskContext(network, 128, s, loader.positions, Distributed())
        compute = ComputeContext(torch.device("cpu"), "fp32", MEAN, STD)
        options = CallbackOptions()
        return build_trainer(SwAVTask(context), chosen, loader, run, compute, options=options)

    return made


def watch(trainer):
    """(prototypes before, after, learning rate used, bank full) of every step."""
    seen, original = [], trainer.train_step

    def step(batch):
        before = trainer.state.model.prototypes.weight.detach().clone()
        full = trainer.task.assignment.queue is not None and trainer.task.assignment.queue.full
        result = original(batch)
        after = trainer.state.model.prototypes.weight.detach().clone()
        rates = {group["lr"] for group in trainer.state.optimizer.param_groups}
        seen.append((before, after, rates, full))
        return result

    trainer.train_step = step
    trainer.fit(QuietConsole())
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "larc", "sgd"])
def test_prototypes_stand_still_while_frozen_and_move_after(make, optimizer):
    seen = watch(make(optimizer=optimizer))
    for k, (before, after, _, _) in enumerate(seen):
        unit = torch.nn.functional.normalize(before, dim=1)
        moved = not torch.allclose(after, unit, atol=1e-7)
        assert moved == (k >= 4), k


def test_every_steps_learning_rate_is_the_schedules(make):
    trainer = make()
    seen = watch(trainer)
    assert [rates for _, _, rates, _ in seen] == [
        {trainer.plan.learning_rate(k)} for k in range(trainer.plan.steps)
    ]
    written = [r["learning_rate"] for r in trainer.run.metrics()]
    assert written == [trainer.plan.learning_rate(k) for k in range(12)]


def test_the_queue_fills_from_its_epoch_and_serves_once_full(make):
    # 4 steps an epoch, the queue holds 2 batches: it fills at steps 4 and 5, serves from 6 on
    assert [full for *_, full in watch(make())] == [k >= 6 for k in range(12)]


def test_codes_with_a_full_queue_are_those_of_the_joined_batch(make):
    from unfreeze.swav.sinkhorn import sinkhorn

    trainer = make()
    trainer.fit(QuietConsole())
    Z = torch.nn.functional.normalize(torch.randn(2, 32, 16), dim=2)
    held = trainer.task.assignment.queue.features.clone()
    scores = [trainer.state.model.scores(z).detach() for z in Z]
    codes = trainer.task.assign(list(Z), scores, Batch(0, 2, None, None, []))
    for v in range(2):
        joined = torch.cat([scores[v], trainer.state.model.scores(held[v]).detach()])
        assert torch.equal(codes[v], sinkhorn(joined, epsilon=trainer.task.settings.epsilon)[:32])
        assert torch.equal(trainer.task.assignment.queue.features[v, :32], Z[v])


@pytest.mark.slow
def test_the_loss_falls(make):
    given = {"queue_length": 0, "base_lr": 2e-3, "feat_dim": 128, "epsilon": 0.03}
    trainer = make(epochs=25, min_scale_crops=(0.5,), **given)
    trainer.fit(QuietConsole())
    losses = [r["loss"] for r in trainer.run.metrics()]
    assert abs(losses[0] - np.log(16)) < 0.5
    assert np.mean(losses[-8:]) < 0.8 * np.log(16)  # 0.72 measured; 1.00 is a collapse


def test_a_broken_loss_names_the_step_and_saves_nothing(make):
    trainer = make()
    original = trainer.train_step

    def broken(batch):
        loss = original(batch)
        return loss * float("nan") if trainer.step == 5 else loss

    trainer.train_step = broken
    with pytest.raises(DivergedError, match="at step 6 ") as error:
        trainer.fit(QuietConsole())
    assert error.value.exit_code == 5
    saved = torch.load(trainer.run.file("checkpoints/last.ckpt"), weights_only=True)
    assert saved["step"] == 4 and np.isfinite(saved["loss"])


def test_the_hook_is_called_when_an_epoch_has_ended_and_is_saved(make):
    seen = []
    trainer = make(epochs=2)

    def hook(state, done):
        saved = torch.load(trainer.run.file("checkpoints/last.ckpt"), weights_only=True)
        seen.append((done, state.step, saved["step"]))

    trainer.callbacks.append(EpochCallback(hook, Distributed()))
    trainer.fit(QuietConsole())
    assert seen == [(1, 4, 4), (2, 8, 8)]
    trainer.fit(QuietConsole())  # nothing is left to do, and the last call is made again
    assert seen[2:] == [(2, 8, 8)]


def test_records_are_json_with_the_contracts_names(make):
    trainer = make()
    trainer.fit(QuietConsole())
    lines = trainer.run.file("metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert len(lines) == 12
    assert {
        "step",
        "epoch",
        "split",
        "loss",
        "learning_rate",
        "images_per_second",
        "seconds_data",
        "seconds_step",
    } <= set(record)
    assert record["step"] == 1 and record["epoch"] == 0 and record["split"] == "train"
