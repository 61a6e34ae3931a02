import json
import shutil
import signal
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.main import main
from unfreeze.commands import finetune as verb
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.data.index.splits import read_split_csv
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.errors import DataError, Interrupted, UsageError, WeightsError
from unfreeze.runs.finetuning import train
from unfreeze.runtime.run_folder import RunFolder, read_metrics
from unfreeze.transfer.training_run import FinetuneTrainer

TINY = {
    **{"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"},
    "select": "accuracy",  # five validation images are too few unless it is asked for
}
COLOURS = {"red": 8, "green": 8, "blue": 8}
FIELDS = [
    *("run", "arch", "classes", "epochs", "best_epoch", "val_accuracy", "parameters_trainable"),
    *("parameters_frozen", "frozen_unchanged", "weights_matched", "images", "images_per_second"),
    *("seconds", "model", "val_images", "val_interval", "leaked", "accuracy_unleaked", "warnings"),
    *("repeated", "task", "val_metrics"),
]
FILES = [
    *("config.toml", "metrics.jsonl", "log.txt", "problems.csv", "split.csv", "evaluation.json"),
    *("views.npz", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "curves.png", "report.html"),
    *("model/model.json", "model/model.safetensors"),
]


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    """A finished run over three colours."""
    folder = tmp_path_factory.mktemp("done")
    data = colours(folder / "colours", COLOURS)
    return data, finetune(str(data), out=str(folder / "run"), epochs=3, **TINY)


@pytest.fixture(autouse=True)
def _no_more_drawing(run, monkeypatch):
    monkeypatch.setattr(verb, "write_report_or_warn", lambda run, console: None)


def test_a_run_learns_and_leaves_the_promised_files(run):
    _, result = run
    assert list(vars(result)) == FIELDS
    assert result.classes == ["blue", "green", "red"] and result.images == 19
    assert result.val_images == 5 and result.val_interval[0] < result.val_accuracy
    assert result.val_accuracy > 0.5 and result.frozen_unchanged is None
    assert result.weights_matched is None and result.parameters_frozen == 0
    folder = RunFolder(result.run)
    for name in FILES:
        assert folder.file(name).is_file(), name
    rows = read_split_csv(folder.file("split.csv"))
    assert len(rows) == 24 and sum(row.split == "val" for row in rows) == 5
    config = tomllib.loads(folder.file("config.toml").read_text())
    assert config["facts"]["threads"] == torch.get_num_threads()
    assert config["batch_size"] == 4 and "batch_size" in config["reasons"]
    found = json.loads(folder.file("evaluation.json").read_text())
    assert found["accuracy"] == result.val_accuracy and found["used_for_choosing"]


def test_the_card_carries_classes_preprocessing_and_where_it_comes_from(run):
    _, result = run
    tensors, card = load_model(result.model)
    assert card.classes == ("blue", "green", "red") and card.kind == "classifier"
    assert card.preprocess["image_size"] == 16  # 12 pixels, to the next multiple of 8
    assert card.provenance["weights"] == "none" and card.provenance["fingerprint"]
    assert not any(name.startswith("module.") for name in tensors)


def test_frozen_unchanged_is_read_from_the_written_file(coloured, tmp_path, run):
    data, first = run
    options = {**TINY, "weights": first.run, "freeze": "all", "epochs": 2}
    result = finetune(str(data), out=str(tmp_path / "frozen"), **options)
    assert result.frozen_unchanged is True and result.weights_matched == 1.0
    assert (result.parameters_trainable, result.parameters_frozen) == (387, 307_360)
    start, _ = load_model(first.model)
    end, _ = load_model(result.model)
    assert all(torch.equal(start[n], end[n]) for n in start if not n.startswith("head"))


@pytest.mark.parametrize("broken", ["stage2.conv1.weight", "stage2.bn1.running_mean"])
def test_frozen_unchanged_turns_false_when_the_file_differs(run, tmp_path, monkeypatch, broken):
    data, first = run
    save = train.save_model

    def tampering(folder, tensors, card):
        held = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        held[broken].view(-1)[0] += 1e-3
        save(folder, held, card)

    monkeypatch.setattr(train, "save_model", tampering)
    options = {**TINY, "weights": first.run, "freeze": "all", "epochs": 1}
    result = finetune(str(data), out=str(tmp_path / "frozen"), **options)
    assert result.frozen_unchanged is False


def test_frozen_unchanged_turns_false_when_training_moves_what_is_frozen(
    run, tmp_path, monkeypatch
):
    data, first = run
    step = FinetuneTrainer.train_step

    def drifting(self, batch):
        loss = step(self, batch)
        with torch.no_grad():
            self.network.stem[1].running_var.mul_(1.01)
        return loss

    monkeypatch.setattr(FinetuneTrainer, "train_step", drifting)
    options = {**TINY, "weights": first.run, "freeze": "all", "epochs": 1}
    result = finetune(str(data), out=str(tmp_path / "frozen"), **options)
    assert result.frozen_unchanged is False


def test_interrupted_and_resumed_is_the_straight_run(coloured, tmp_path, stopped_after):
    data = str(coloured("colours", COLOURS))
    options = {**TINY, "epochs": 4, "augment": "photo", "freeze": "stage:1"}
    straight = finetune(data, out=str(tmp_path / "straight"), **options)
    with stopped_after(7), pytest.raises(Interrupted, match="1 of 4 epochs") as caught:
        finetune(data, out=str(tmp_path / "broken"), **options)
    assert "resume=True" in caught.value.next_step
    assert (tmp_path / "broken/model/model.json").is_file()
    with stopped_after(2), pytest.raises(Interrupted, match="0 of 4 epochs"):
        finetune(data, out=str(tmp_path / "short"), **options)
    assert evaluate(str(tmp_path / "short"), data).epoch is None
    resumed = finetune(data, out=str(tmp_path / "broken"), resume="yes", **options)
    left, right = (load_file(f"{r.model}/model.safetensors") for r in (straight, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert resumed.frozen_unchanged is True
    assert (resumed.best_epoch, resumed.val_accuracy) == (
        straight.best_epoch,
        straight.val_accuracy,
    )
    lines = [[m["step"] for m in read_metrics(r.run)] for r in (straight, resumed)]
    assert lines[0] == lines[1]


def test_resume_refuses_other_settings_and_other_images(run, coloured):
    data, result = run
    with pytest.raises(UsageError, match=r"started with epochs=3 and cannot resume with 5"):
        finetune(str(data), out=result.run, resume="yes", epochs=5, **TINY)
    other = coloured("other", COLOURS)
    with pytest.raises(DataError, match="dataset has changed since the run was started"):
        finetune(str(other), out=result.run, resume="yes", epochs=3, **TINY)


def test_resume_of_a_finished_run_gives_its_result_again(run, tmp_path):
    data, result = run
    copy = shutil.copytree(result.run, tmp_path / "copy")
    again = finetune(str(data), out=str(copy), resume="yes", epochs=3, **TINY)
    same = {"epochs", "best_epoch", "val_accuracy", "images", "classes"}
    assert {n: vars(again)[n] for n in same} == {n: vars(result)[n] for n in same}


def test_resume_without_a_checkpoint_starts(coloured, tmp_path):
    data = coloured("colours", COLOURS)
    result = finetune(str(data), out=str(tmp_path / "new"), resume="auto", epochs=1, **TINY)
    assert result.epochs == 1


def test_an_existing_folder_is_refused(run):
    data, result = run
    with pytest.raises(UsageError, match="not empty"):
        finetune(str(data), out=result.run, epochs=1, **TINY)


def test_what_is_refused_leaves_no_folder_and_deletes_none(coloured, tmp_path):
    data, out = coloured("colours", COLOURS), tmp_path / "run"
    wrong = {**TINY, "out": str(out), "epochs": 1, "warmup_epochs": 2}
    with pytest.raises(UsageError, match="more than epochs="):
        finetune(str(data), **wrong)
    assert not out.exists()  # so the command put right needs no --overwrite
    finetune(str(data), **{**wrong, "warmup_epochs": 0})
    with pytest.raises(UsageError, match="more than epochs="):
        finetune(str(data), **wrong, overwrite=True)
    assert (out / "model" / "model.safetensors").exists()


def test_few_labels_have_no_validation_and_keep_the_last_weights(coloured, tmp_path):
    data = coloured("colours", COLOURS)
    result = finetune(str(data), out=str(tmp_path / "few"), labels_per_class=4, epochs=2, **TINY)
    assert (result.best_epoch, result.val_accuracy, result.images) == (None, None, 12)
    assert not (tmp_path / "few/checkpoints/best.ckpt").exists()
    assert all(row.split == "train" for row in read_split_csv(tmp_path / "few/split.csv"))
    last = torch.load(tmp_path / "few/checkpoints/last.ckpt", weights_only=True)["model"]
    written, _ = load_model(result.model)
    assert all(torch.equal(last[name], written[name]) for name in last)


def test_the_datas_own_val_is_used_whole(coloured, tmp_path):
    data = coloured(
        "split", {"train/red": 6, "train/blue": 6, "val/red": 3, "val/blue": 2, "test/red": 4}
    )
    finetune(str(data), out=str(tmp_path / "run"), labels_per_class=3, epochs=1, **TINY)
    rows = read_split_csv(tmp_path / "run/split.csv")
    assert [sum(r.split == s for r in rows) for s in ("train", "val", "test")] == [6, 5, 0]


def test_a_batch_of_one_is_never_asked_of_batch_norm(coloured, tmp_path):
    data = coloured("colours", {"red": 4, "blue": 5})
    result = finetune(str(data), out=str(tmp_path / "run"), batch_size=8, epochs=1, **TINY)
    assert [m["total"] for m in read_metrics(result.run) if m["split"] == "train"] == [8]


def test_batch_norm_is_not_asked_to_learn_from_single_images(coloured, tmp_path):
    data = str(coloured("colours", {"red": 3, "blue": 3}))
    with pytest.raises(UsageError, match="too small for the batch norm layer"):
        finetune(data, out=str(tmp_path / "run"), batch_size=1, **TINY)
    options = {**TINY, "freeze": "all", "batch_size": 1, "epochs": 1}
    assert finetune(data, out=str(tmp_path / "head"), **options).epochs == 1


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({".": 5}, "has no classes"),
        ({"red": 5}, "only one class"),
        ({"test/red": 5, "test/blue": 5}, "no train"),
    ],
)
def test_data_without_a_choice_is_refused_with_a_next_step(coloured, tmp_path, layout, says):
    data = coloured("odd", layout)
    with pytest.raises(DataError, match=says) as caught:
        finetune(str(data), out=str(tmp_path / "run"), **TINY)
    assert caught.value.exit_code == 3 and caught.value.next_step
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_plan_with_reasons_and_touches_nothing(coloured, tmp_path):
    data = coloured("colours", COLOURS)
    before = sorted(tmp_path.rglob("*"))
    found = finetune(str(data), dry_run=True, freeze="stage:1", **TINY)
    assert sorted(tmp_path.rglob("*")) == before
    for name in ("image_size", "batch_size", "lr", "last_map", "precision", "val"):
        assert found.reasons[name]
    assert found.images == 19 and found.steps == 150
    assert found.parameters_trainable + found.parameters_frozen == 307_747
    assert found.settings["lr"] and found.settings["image_size"] == 16


def test_the_steps_of_a_plan_are_those_of_the_run(coloured, tmp_path):
    """A last batch of one image, which batch norm cannot take, is left out of both."""
    options = {**TINY, "val": 0.0, "limit": 17, "batch_size": 8, "epochs": 2}
    data = str(coloured("colours", COLOURS))
    found = finetune(data, dry_run=True, **options)
    made = finetune(data, out=str(tmp_path / "run"), **options)
    facts = tomllib.loads((tmp_path / "run/config.toml").read_text())["facts"]
    assert found.steps == facts["steps"] == 4 and made.epochs == 2


def test_copies_on_both_sides_are_counted_and_said(coloured, tmp_path):
    data = coloured("c", {"train/red": 6, "train/blue": 6, "val/red": 3, "val/blue": 3})
    (data / "val/red/copy.png").write_bytes((data / "train/red/000.png").read_bytes())
    result = finetune(str(data), out=str(tmp_path / "run"), **{**TINY, "epochs": 1})
    told = json.loads((tmp_path / "run/evaluation.json").read_text())
    found = evaluate(result.run, str(data))
    assert told["n"] == found.n == 7 and told["seen_in_training"] == found.seen_in_training > 0
    assert result.leaked == found.leaked == 1
    assert "near-duplicates of training images" in (tmp_path / "run/log.txt").read_text()


def test_what_is_missing_is_said(coloured, tmp_path):
    data = str(coloured("colours", COLOURS))
    with pytest.raises(UsageError, match="needs a run folder"):
        finetune(data, **TINY)
    with pytest.raises(WeightsError):
        finetune(data, out=str(tmp_path / "run"), arch="unfreeze/tiny")  # no published weights
    with pytest.raises(UsageError, match="Unknown architecture"):
        finetune(data, out=str(tmp_path / "run"), arch="unfreeze/tinny", weights="none")
    with pytest.raises(UsageError, match="stages 0 to 3"):
        finetune(data, out=str(tmp_path / "run"), freeze="stage:9", **TINY)
    assert not (tmp_path / "run").exists()


def test_groups_stay_on_one_side(coloured, tmp_path):
    data = coloured("colours", {"red": 12, "blue": 12})
    finetune(str(data), out=str(tmp_path / "run"), group_by=r"(\d)\.png", val=0.3, epochs=1, **TINY)
    rows = read_split_csv(tmp_path / "run/split.csv")
    sides = {}
    for row in rows:
        sides.setdefault(row.path[-5], set()).add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    with pytest.raises(UsageError, match="group_by patient is not a column"):
        finetune(str(data), out=str(tmp_path / "other"), group_by="patient", **TINY)


def test_views_for_the_report_are_kept(run):
    _, result = run
    with np.load(f"{result.run}/views.npz") as held:
        assert held["views"].shape == (8, 3, 16, 16, 3) and held["views"].dtype == np.uint8


def test_digits_are_learnt(tmp_path):
    result = finetune(
        "digits",
        out=str(tmp_path / "run"),
        labels_per_class=40,
        epochs=12,
        **{**TINY, "augment": "digits"},
    )
    assert result.val_accuracy > 0.85


def test_a_used_folder_is_refused_before_weights_are_looked_for(run, coloured):
    data, result = run
    with pytest.raises(UsageError, match="not empty"):
        finetune(str(data), out=result.run, weights="no/such.pth", arch="unfreeze/tiny")


def test_the_next_step_of_an_interruption_can_be_pasted(coloured, tmp_path, monkeypatch):
    data = str(coloured("my colours", COLOURS))

    def stopping(self, batch):
        signal.raise_signal(signal.SIGTERM)
        return raise_at_once(self, batch)

    raise_at_once = FinetuneTrainer.train_step
    monkeypatch.setattr(FinetuneTrainer, "train_step", stopping)
    with pytest.raises(Interrupted) as caught:
        finetune(data, out=str(tmp_path / "run"), epochs=2, **TINY)
    call = caught.value.next_step.removeprefix("Resume with: ")
    assert call == f"unfreeze.finetune({data!r}, out={str(tmp_path / 'run')!r}, resume=True)"


def test_a_file_that_is_lost_saves_the_run_first(coloured, tmp_path, monkeypatch):
    data = str(coloured("colours", COLOURS))
    options = {**TINY, "epochs": 3, "batch_size": 4, "store_budget": 0, "checkpoint_every": 9}
    step = FinetuneTrainer.train_step

    def losing(self, batch):
        loss = step(self, batch)
        if self.step == 6:
            monkeypatch.setattr(ImageDataset, "_decode", gone)
        return loss

    def gone(self, row):
        raise OSError("gone")

    monkeypatch.setattr("unfreeze.data.loading.dataset._PAUSES", ())
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "train_step", losing)
        with pytest.raises(DataError, match="in three attempts: gone"):
            finetune(data, out=str(tmp_path / "run"), **options)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert state["step"] == 7


def test_a_link_that_leads_nowhere_is_left_out(coloured, tmp_path):
    data = coloured("colours", COLOURS)
    (data / "red" / "0.png").symlink_to(tmp_path / "nowhere")
    result = finetune(str(data), out=str(tmp_path / "run"), epochs=1, **TINY)
    assert "red/0.png,unreadable" in (tmp_path / "run/problems.csv").read_text()
    assert result.images == 19


def test_time_and_memory_are_said_before_a_run_and_by_a_dry_run(tmp_path, capsys):
    words = ["finetune", "digits", "--weights", "none", "--arch", "unfreeze/tiny", "--device"]
    words += ["cpu", "--limit", "40", "--epochs", "1"]
    assert main([*words, "--dry-run", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["time"]["seconds"] == 60 and found["time"]["at_most"]
    parts = [v for n, v in found["memory"].items() if n not in ("total", "basis")]
    assert found["memory"]["total"] == sum(parts) > 0
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    for text in (said.err, log):
        assert "Time: about a minute or less." in text and "Memory: about " in text
