"""The twelve traps of common fine-tuning snippets, and the ones found beside them."""

import io
import math
import pickle
import signal
import tarfile
import warnings
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from unfreeze.checkpoints.model_file import load_model
from unfreeze.checkpoints.state import load_state, save_state
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import build as settings
from unfreeze.data.index.splits import read_split_csv
from unfreeze.data.loading.sample import DatasetSample
from unfreeze.data.sources.folder import FolderSource
from unfreeze.errors import DataError, Interrupted, UsageError, WeightsError
from unfreeze.models.build import build
from unfreeze.models.head import head_layers, replace_head
from unfreeze.optim.optimizer import decay_groups, make_optimizer
from unfreeze.runtime.console import QuietConsole
from unfreeze.transfer import training_run as trainer_module
from unfreeze.transfer.freezing.freeze import (
    apply_freeze,
    frozen_entries,
    hash_tensors,
    select_frozen,
)
from unfreeze.transfer.plan import choose_preprocess, last_feature_map_size
from unfreeze.transfer.predictor import load_classifier

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(
        "unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None
    )


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def counting_loads(monkeypatch):
    """How often, and after which step, a checkpoint is read while training."""
    loads = []
    monkeypatch.setattr(
        trainer_module, "load_state", lambda path: loads.append(path.name) or load_state(path)
    )
    return loads


def test_trap_01_best_weights_are_loaded_once_after_the_loop(make_trainer, monkeypatch):
    loads = counting_loads(monkeypatch)
    choosing, blind = make_trainer("choosing"), make_trainer("blind", validate=False)
    scores = iter([0.5, 0.9, 0.6, 0.8])
    choosing.validation.validate = lambda: {"accuracy": next(scores), "loss": 1.0}
    outcome = choosing.train_to_best(QuietConsole())
    blind.train_to_best(QuietConsole())
    assert loads == ["best.ckpt"] and outcome.best_epoch == 1
    last = load_state(choosing.run.file("checkpoints/last.ckpt"))
    best = load_state(choosing.run.file("checkpoints/best.ckpt"))
    # keeping the best has not touched training: it ended where it ends without any validation
    assert same(last["model"], blind.network.state_dict())
    assert same(choosing.network.state_dict(), best["model"])
    assert not same(best["model"], last["model"])
    assert best["epoch"] == outcome.best_epoch + 1
    assert f"epoch {outcome.best_epoch}" in choosing.run.file("log.txt").read_text()


def test_trap_01_best_weights_are_loaded_after_an_early_stop_too(make_trainer, monkeypatch):
    loads = counting_loads(monkeypatch)
    trainer = make_trainer(epochs=40, patience=2)
    outcome = trainer.train_to_best(QuietConsole())
    assert outcome.ended_early and loads == ["best.ckpt"]
    best = load_state(trainer.run.file("checkpoints/best.ckpt"))
    assert same(trainer.network.state_dict(), best["model"])


def test_trap_01_best_weights_are_loaded_after_ctrl_c_too(make_trainer, monkeypatch):
    loads = counting_loads(monkeypatch)
    trainer = make_trainer(epochs=40)
    step = trainer.train_step

    def stepping(batch):
        loss = step(batch)
        if trainer.step == 17:
            signal.raise_signal(signal.SIGINT)
        return loss

    trainer.train_step = stepping
    assert trainer.train_to_best(QuietConsole()).interrupted and loads == ["best.ckpt"]
    best = load_state(trainer.run.file("checkpoints/best.ckpt"))
    assert same(trainer.network.state_dict(), best["model"])
    assert load_state(trainer.run.file("checkpoints/last.ckpt"))["step"] == 18


def test_trap_02_the_cosine_spans_the_steps_that_are_run(make_trainer):
    for epochs in (2, 6):
        trainer = make_trainer(f"run{epochs}", epochs=epochs, validate=False, lr=0.1)
        trainer.train_to_best(QuietConsole())
        rates = [m["learning_rate"] for m in trainer.run.metrics()]
        total = 4 * epochs
        wanted = [0.05 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
        assert rates == pytest.approx(wanted)
        assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * (2.5 / total) ** 2


def test_trap_03_a_last_map_of_one_pixel_is_seen_and_not_chosen():
    with torch.device("meta"):
        network = build("resnet50")
    sides = partial(last_feature_map_size, network)
    assert sides(32) == (1, 1)
    auto = settings(FinetuneSettings, {"data": "x"})
    square = lambda side: DatasetSample(1, np.array([side]), np.array([side]), ())  # noqa: E731
    chosen, reasons = choose_preprocess(auto, square(32), None, sides)
    assert min(sides(chosen.image_size)) >= 2 and "enlarged" in reasons["image_size"]
    small, _ = choose_preprocess(auto, square(32), chosen.__class__(224, 232), sides)
    assert small.image_size == 224  # pretrained weights get the images they know
    with pytest.raises(UsageError, match="1x1"):
        choose_preprocess(auto, square(32), chosen.__class__(32, 32), sides)
    asked = settings(FinetuneSettings, {"data": "x", "image_size": 32})
    chosen, reasons = choose_preprocess(asked, square(32), None, sides)
    assert chosen.image_size == 32 and "only 1x1" in reasons["image_size"]


def test_trap_04_the_weights_own_preprocessing_is_used_and_stored(coloured, tmp_path):
    data = str(coloured("colours", {"red": 6, "blue": 6}))
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "image_size": 24}
    first = finetune(data, out=str(tmp_path / "first"), epochs=1, **own, **TINY)
    second = finetune(
        data, out=str(tmp_path / "second"), epochs=1, **{**TINY, "weights": first.run}
    )
    for run in (first, second):
        preprocess = load_classifier(run.run).preprocess
        assert (preprocess.mean, preprocess.std) == (own["mean"], own["std"])
        assert preprocess.image_size == 24


def test_trap_05_a_checkpoint_with_a_missing_key_says_which(coloured, tmp_path):
    data = str(coloured("colours", {"red": 6, "blue": 6}))
    run = finetune(data, out=str(tmp_path / "run"), epochs=1, **TINY)
    path = tmp_path / "run/checkpoints/last.ckpt"
    state = load_state(path)
    del state["optimizer"]
    save_state(path, state)
    with pytest.raises(WeightsError, match=r"lacks optimizer and has .*step"):
        finetune(data, out=run.run, resume="yes", epochs=1, **TINY)


def test_trap_06_a_truncated_image_is_left_out_and_never_removed(coloured, tmp_path):
    data = coloured("colours", {"red": 8, "blue": 8}, side=64)
    broken = data / "red/000.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    finetune(str(data), out=str(tmp_path / "run"), epochs=1, image_size=16, **TINY)
    assert broken.stat().st_size == 3000
    assert "red/000.png,truncated" in (tmp_path / "run/problems.csv").read_text()
    rows = read_split_csv(tmp_path / "run/split.csv")
    assert len(rows) == 15 and all(row.path != "red/000.png" for row in rows)


def test_trap_07_a_frozen_batch_norm_does_not_move():
    torch.manual_seed(0)
    network = build("resnet18")
    frozen = select_frozen(network, "all", head=replace_head(network, 3))
    apply_freeze(network, frozen)
    names = frozen_entries(network, frozen)
    assert len([n for n in names if n.endswith(("running_mean", "num_batches_tracked"))]) == 40
    before = hash_tensors(network.state_dict(), names)
    for _ in range(3):
        network.train()  # as every loop does, each epoch
        network(3 + 5 * torch.randn(2, 3, 64, 64)).sum().backward()
    assert hash_tensors(network.state_dict(), names) == before
    for module in network.modules():
        module.__dict__.pop("train", None)  # what happens without the pin
    network.train()
    network(torch.randn(2, 3, 64, 64))
    assert hash_tensors(network.state_dict(), names) != before


def packed(path, inside):
    """An archive with these members: name -> bytes."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in inside.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in inside.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_trap_08_an_archive_is_read_in_place_and_never_extracted(coloured, tmp_path, kind):
    data = coloured("colours", {"red": 6, "blue": 6})
    inside = {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*.png")}
    good = packed(tmp_path / f"good.{kind}", inside)
    before = set(tmp_path.rglob("*"))
    finetune(good, out=str(tmp_path / "run"), epochs=1, **TINY)
    written = set(tmp_path.rglob("*")) - before
    assert all(tmp_path / "run" in (path, *path.parents) for path in written)
    assert not [path for path in written if path.name in {n.rpartition("/")[2] for n in inside}]
    evil = packed(tmp_path / f"evil.{kind}", {**inside, "../../evil.png": inside["red/000.png"]})
    with pytest.raises(DataError, match="points outside"):
        finetune(evil, out=str(tmp_path / "other"), epochs=1, **TINY)
    assert not (tmp_path / "other").exists() and not (tmp_path.parent.parent / "evil.png").exists()


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.TRAPPED = True",))


def test_trap_09_weights_never_run_code(coloured, tmp_path):
    import builtins

    data = str(coloured("colours", {"red": 6, "blue": 6}))
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    torch.save(build("unfreeze/tiny"), tmp_path / "whole.pth")
    for name in ("bomb.pth", "plain.pkl", "whole.pth"):
        with pytest.raises(WeightsError) as caught:
            finetune(data, out=str(tmp_path / "run"), **{**TINY, "weights": str(tmp_path / name)})
        assert caught.value.exit_code == 4
    assert not hasattr(builtins, "TRAPPED")
    run = finetune(data, out=str(tmp_path / "good"), epochs=1, **TINY)
    torch.load(f"{run.run}/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "arch",
    ["vgg11", "alexnet", "densenet121", "squeezenet1_1", "vit_b_32", "convnext_tiny",
     "googlenet", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5", "swin_t", "efficientnet_b0",
     "timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050"],
)  # fmt: skip
def test_trap_10_the_head_that_makes_the_scores_is_the_one_replaced(arch):
    with torch.device("meta"):
        network = build(arch)
        old = set(network.state_dict())
        head = replace_head(network, 5)
        side = 299 if arch == "inception_v3" else 224
        scores = network.eval()(torch.empty(1, 3, side, side))
    assert tuple(scores.shape) == (1, 5)
    assert set(network.state_dict()) == old  # nothing beside the old names, nothing left over
    wide = [n for n, p in network.named_parameters() if p.shape[0] == 1000]
    assert not wide and all(name.startswith(head_layers(network)) for name in head)
    frozen = select_frozen(network, "all", head=head)
    assert {n for n, _ in network.named_parameters()} - frozen == set(head)


def test_trap_11_no_deprecated_call_and_the_weights_are_on_record(shared, tmp_path, coloured):
    data = str(coloured("colours", {"red": 3, "blue": 3}))
    weights = str(shared / "weights/squeezenet1_1-imagenet.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = finetune(
            data, out=str(tmp_path / "run"), arch="squeezenet1_1", weights=weights, epochs=1,
            freeze="all", image_size=64, augment="none", precision="fp32",
        )  # fmt: skip
    _, card = load_model(run.model)
    assert weights in card.provenance["weights"]
    assert "SqueezeNet1_1_Weights.IMAGENET1K_V1" in card.provenance["weights"]
    assert card.provenance["weights_matched"] == run.weights_matched == 1.0


def test_trap_12_the_test_set_is_not_read_in_training(coloured, tmp_path, monkeypatch):
    data = coloured("split", {"train/red": 8, "train/blue": 8, "test/red": 4, "test/blue": 4})
    seen = []
    for method in ("read", "head"):
        real = getattr(FolderSource, method)

        def spying(self, row, *more, _real=real):
            seen.append(self.names[row])
            return _real(self, row, *more)

        monkeypatch.setattr(FolderSource, method, spying)
    run = finetune(str(data), out=str(tmp_path / "run"), epochs=1, **TINY)
    assert seen and not [name for name in seen if name.startswith("test/")]
    assert {row.split for row in read_split_csv(tmp_path / "run/split.csv")} == {"train", "val"}
    assert run.val_accuracy is not None
    found = evaluate(run.run, str(data))
    assert (found.split, found.n, found.seen_in_training) == ("test", 8, 0)
    assert not found.used_for_choosing


# Further traps found on the way


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_trap_zero_gradients_do_not_move_what_was_frozen_later(optimizer):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    named = list(network.named_parameters())
    steps = make_optimizer(optimizer, decay_groups(named, 0.1), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        network(torch.randn(8, 4)).sum().backward()
        steps.step()
        steps.zero_grad(set_to_none=False)
    apply_freeze(network, {"0.weight", "0.bias"})
    before = network[0].weight.clone()
    network(torch.randn(8, 4)).sum().backward()
    steps.step()
    assert torch.equal(network[0].weight, before)


def test_trap_a_last_batch_of_one_is_dropped_and_only_that(make_trainer):
    assert make_trainer("a", count=25, batch_size=8).loader.steps_per_epoch == 3
    assert make_trainer("b", count=26, batch_size=8).loader.steps_per_epoch == 4


def test_trap_classes_come_from_train_and_are_matched_by_name(coloured, tmp_path):
    data = coloured(
        "split", {"train/red": 6, "train/blue": 6, "train/green": 6, "val/red": 3, "val/green": 2}
    )
    run = finetune(str(data), out=str(tmp_path / "run"), epochs=8, **TINY)
    assert run.classes == ["blue", "green", "red"] and run.val_accuracy == 1.0
    other = coloured("other", {"green": 2, "red": 3})
    found = evaluate(run.run, str(other))
    assert found.accuracy == 1.0 and [sum(row) for row in found.confusion] == [0, 2, 3]


def test_trap_an_interrupted_run_can_be_used_and_resumed(coloured, tmp_path, monkeypatch):
    data = str(coloured("colours", {"red": 8, "blue": 8}))
    step = trainer_module.FinetuneTrainer.train_step

    def stepping(self, batch):
        loss = step(self, batch)
        if self.step == 5:
            signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.FinetuneTrainer, "train_step", stepping)
        with pytest.raises(Interrupted) as caught:
            finetune(data, out=str(tmp_path / "run"), epochs=9, **TINY)
    assert caught.value.exit_code == 130
    assert load_classifier(tmp_path / "run").classes == ("blue", "red")
