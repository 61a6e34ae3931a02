"""Fine-tuning in two processes computes what one does, however it is trained."""

import signal
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unfreeze.commands import finetune as verb
from unfreeze.commands.finetune import finetune
from unfreeze.data.augment.multicrop import normalize
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.errors import Interrupted
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.models.norm import convert_sync_batchnorm
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import RunFolder, read_metrics
from unfreeze.transfer.augment import view_maker_of
from unfreeze.transfer.freezing.freeze import constant_schedule, select_frozen
from unfreeze.transfer.loss import TrainingConfig
from unfreeze.transfer.training_run import FinetuneTrainer, Run
from unfreeze.transfer.validation import ValidationSet

PLAIN = Preprocess(8, 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CASES = {
    "plain": {},
    "weighted": {
        "label_smoothing": 0.1,
        "class_weights": tuple(np.linspace(0.5, 1.5, 10)),
        "clip_grad": 0.5,
        "ema": 0.9,
    },
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    # no batch norm learns: it would see each part alone
    "in-parts": {"count": 71, "accumulate": 2, "freeze": "all"},  # the last batch is 3 and 4
}


def trainer(processes, folder, *, count=75, sync=True, freeze="none", **fit):
    """In float64 on the first digits: the last batch has 11 images, shared as 5 and 6."""
    torch.manual_seed(0)
    network = build("unfreeze/tiny")
    head = replace_head(network, 10)
    network = network.double()
    if sync and processes.world > 1:
        network = convert_sync_batchnorm(network)
    index = build_index(open_source("digits"))

    def prepare(images):
        return normalize(images, PLAIN.mean, PLAIN.std).double()

    loader = Loader(
        ImageDataset(index.take(np.arange(count))),
        view_maker_of("digits", PLAIN, 0),
        batch_size=16,
        seed=0,
        drop_last=False,
        rank=processes.rank,
        world=processes.world,
    )
    held = ImageDataset(index.take(np.arange(200, 350)))
    holdout = ValidationSet(held, PLAIN, prepare=prepare, budget=2**20, processes=processes)
    folder.mkdir(exist_ok=True, parents=True)
    return FinetuneTrainer(
        network,
        loader,
        TrainingConfig(**{"epochs": 3, "lr": 0.02, **fit}),
        Run(RunFolder(folder, writes=processes.is_rank_zero), processes),
        prepare=prepare,
        validate=partial(holdout.record, network),
        freeze=constant_schedule(select_frozen(network, freeze, head=head)),
    )


def trained(rank, folder, options):
    made = trainer(init_distributed("cpu"), folder, **options)
    outcome = made.train_to_best(QuietConsole())
    return outcome, {name: value.numpy() for name, value in made.network.state_dict().items()}


def difference(one, two):
    names = [name for name in one if not name.endswith("num_batches_tracked")]
    a = np.concatenate([one[name].ravel() for name in names])
    b = np.concatenate([two[name].ravel() for name in names])
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def lines(folder, *names):
    return [[m[n] for n in names] for m in read_metrics(folder)]


@pytest.mark.parametrize("case", CASES)
def test_one_process_equals_two(processes, tmp_path, case):
    options = CASES[case]
    alone = trainer(Distributed(), tmp_path / "one", **options)
    outcome = alone.train_to_best(QuietConsole())
    one = {name: value.numpy() for name, value in alone.network.state_dict().items()}
    (first, two), (_, other) = processes(2, trained, tmp_path / "two", options)
    assert difference(two, other) == 0  # they hold the same network
    # Adam divides by the gradient's size: of a bias before batch norm it is rounding noise alone
    assert difference(one, two) < (1e-6 if case == "adamw" else 1e-9)
    assert (first.best_epoch, first.val_accuracy, first.images, first.epochs) == (
        *(outcome.best_epoch, outcome.val_accuracy, outcome.images, outcome.epochs),
    )
    numbers = ("step", "split", "accuracy", "correct", "total")
    assert lines(tmp_path / "one", *numbers) == lines(tmp_path / "two", *numbers)
    losses = [np.ravel(lines(tmp_path / n, "loss")) for n in ("one", "two")]
    assert np.allclose(*losses, rtol=1e-4)


def test_that_the_law_can_fail(processes, tmp_path):
    alone = trainer(Distributed(), tmp_path / "one")
    alone.train_to_best(QuietConsole())
    one = {name: value.numpy() for name, value in alone.network.state_dict().items()}
    (_, two), _ = processes(2, trained, tmp_path / "two", {"sync": False})
    assert difference(one, two) > 1e-4


def run(rank, data, out, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "write_report_or_warn", lambda run, console: None)
        return finetune(data, out=out, device="cpu", precision="fp32", **options)


@pytest.fixture(scope="module")
def data(colours, tmp_path_factory):
    return str(colours(tmp_path_factory.mktemp("d") / "c", {"red": 16, "green": 16, "blue": 16}))


VERB = {"arch": "unfreeze/tiny", "weights": "none", "epochs": 3}


def written(result):
    tensors = load_file(f"{result.model}/model.safetensors")
    return {name: value.double().numpy() for name, value in tensors.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.01},  # AdamW's steps magnify rounding; its law is in float64
        {"freeze": "all"},
        {"freeze": "all", "augment": "none", "head_solver": "sgd"},
        {"freeze": "all", "unfreeze_at": "1:stage3", "cache": "activations", "cache_views": 1},
    ],
    ids=["images", "solved", "kept-and-swept", "activations"],
)
def test_the_verb_in_two_processes_is_the_verb(processes, data, tmp_path, options):
    options = {**VERB, **options}
    one = run(0, data, str(tmp_path / "one"), options)
    two, other = processes(2, run, data, str(tmp_path / "two"), options)
    assert vars(two) | {"seconds": 0} == vars(other) | {"seconds": 0}
    assert two.frozen_unchanged == one.frozen_unchanged
    assert (two.images, two.best_epoch, two.val_accuracy) == (
        *(one.images, one.best_epoch, one.val_accuracy),
    )
    assert difference(written(one), written(two)) < 1e-3  # in float32
    texts = [Path(r.run, "config.toml").read_text() for r in (one, two)]
    found = [tomllib.loads(text) for text in texts]
    rates = [text.get("lr", 0.0) for text in found]  # a solved head has none
    assert rates[0] == pytest.approx(rates[1]) and found[1]["facts"]["processes"] == 2
    assert Path(one.run, "split.csv").read_text() == Path(two.run, "split.csv").read_text()


@pytest.mark.slow
def test_they_agree_on_a_rate(processes, data, tmp_path):
    # rates that explode magnify rounding, so one process may find another; these two may not
    options = {**VERB, "find_lr": True, "epochs": 1}
    two, other = processes(2, run, data, str(tmp_path / "two"), options)
    assert vars(two) | {"seconds": 0} == vars(other) | {"seconds": 0}
    tried = [m["learning_rate"] for m in read_metrics(two.run) if m["split"] == "find-lr"]
    found = tomllib.loads(Path(two.run, "config.toml").read_text())
    assert tried[0] < found["lr"] < tried[-1] and "steepest descent" in found["reasons"]["lr"]


def stopped(rank, data, out, options):
    take = FinetuneTrainer.train_step

    def stopping(self, batch):
        loss = take(self, batch)
        if self.step == 4 and rank == 1:  # one of them alone hears it
            signal.raise_signal(signal.SIGTERM)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            run(rank, data, out, options)
    return True


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_they_go_on_as_if_never_stopped(processes, data, tmp_path):
    options = {**VERB, "lr": 0.01}
    straight, _ = processes(2, run, data, str(tmp_path / "straight"), options)
    processes(2, stopped, data, str(tmp_path / "broken"), options)
    steps = [m["step"] for m in read_metrics(tmp_path / "broken") if m["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5]
    again = {**options, "resume": "auto"}
    resumed, _ = processes(2, run, data, str(tmp_path / "broken"), again)
    left, right = written(straight), written(resumed)
    assert all(np.array_equal(left[name], right[name]) for name in left)
