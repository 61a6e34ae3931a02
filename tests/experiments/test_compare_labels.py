"""compare with several numbers of labels, weights of several networks, and what they cost."""

import json
from collections import Counter
from pathlib import Path

import pytest

import unfreeze
from unfreeze.checkpoints.model_file import ModelCard, load_model, save_model
from unfreeze.cli.main import main
from unfreeze.commands import compare as command
from unfreeze.commands.report import report
from unfreeze.config.commands import CompareSettings
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import UsageError
from unfreeze.experiments.compare import pretraining_seconds
from unfreeze.experiments.compare_starts import label_counts
from unfreeze.models.build import build
from unfreeze.models.head import remove_head

PREPROCESS = Preprocess(16, 16).as_dict()
HOW = {"freeze": "all", "augment": "none", "precision": "fp32", "val": 0.25, "device": "cpu"}


@pytest.fixture(autouse=True)
def _no_pages_of_runs(monkeypatch):
    def of_comparison(folder):
        if (Path(folder) / "compare.json").exists():
            report(folder)

    monkeypatch.setattr(command, "report", of_comparison)
    monkeypatch.setattr("unfreeze.commands.finetune.write_report_or_warn", lambda run, told: 0)


@pytest.fixture
def data(coloured):
    counts = {f"{s}/{c}": 12 for s in ("train", "test") for c in ("blue", "green", "red")}
    return str(coloured("colours", counts))


@pytest.fixture
def starts(tmp_path):
    """Weights of a run that continued another one, and of one with another network."""
    for name, arch, seconds in (
        ("swav", "unfreeze/tiny", {"seconds": 60.0, "seconds_before": 30.0}),
        ("other", "unfreeze/small", {"seconds": 90.0}),
    ):
        network = build(arch)
        remove_head(network)
        provenance = {"verb": "pretrain", **seconds}
        card = ModelCard("backbone", arch, preprocess=PREPROCESS, provenance=provenance)
        save_model(tmp_path / name, network.state_dict(), card)
    return [str(tmp_path / name) for name in ("swav", "other")]


@pytest.mark.slow
def test_one_table_by_number_of_labels(data, starts, tmp_path, capsys):
    words = ["compare", data, "--weights", *starts, "--labels-per-class", "8", "2"]
    words += ["--seeds", "1", "--out", str(tmp_path / "cmp"), "--device", "cpu", "--val", "0.25"]
    words += ["--freeze", "all", "--augment", "none", "--precision", "fp32"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    table = result["by_labels"]
    assert table["labels_per_class"] == [2, 8] and len(result["runs"]) == 4
    assert [start["name"] for start in table["starts"]] == ["swav", "other"]
    assert [start["arch"] for start in table["starts"]] == ["unfreeze/tiny", "unfreeze/small"]
    for number, count in enumerate((2, 8)):
        runs = [run for run in result["runs"] if run["labels_per_class"] == count]
        assert len(runs) == 2
        for start, run in zip(table["starts"], runs, strict=True):
            assert run["weights"] == start["weights"]
            assert start["accuracies"][number] == run["accuracy"]
            low, high = start["intervals"][number]
            assert low <= run["accuracy"] <= high and start["seconds"][number] == run["seconds"]
            rows = read_split_csv(Path(run["run"]) / "split.csv")
            used = Counter(row.label for row in rows)
            assert max(used.values()) == count and len(used) == 3
    # the other fields are of the most labels
    assert [s["accuracy"] for s in result["starts"]] == [
        s["accuracies"][1] for s in table["starts"]
    ]
    assert result["verdict"].startswith("2 labels per class: ")
    assert "8 labels per class: " in result["verdict"]
    assert "The networks differ, not only their weights" in result["verdict"]
    assert [start["pretraining_seconds"] for start in table["starts"]] == [90.0, 90.0]
    html = (tmp_path / "cmp/report.html").read_text()
    assert "Accuracy by number of labels" in html and "<th>2 per class</th>" not in html
    assert "2 per class" in html and "labels per class: " in html
    assert main([*words, "--resume"]) == 0  # nothing is trained again
    shown = capsys.readouterr()
    assert "2 per class" in shown.out and "pretraining, min" in shown.out
    assert shown.err.count("already finished") == 4


@pytest.mark.slow
def test_one_number_of_labels_is_the_comparison_it_was(data, starts, tmp_path):
    given = {"weights": starts, "out": str(tmp_path / "cmp"), "seeds": 1, **HOW}
    found = unfreeze.compare(data, labels_per_class=4, **given)
    assert found.by_labels is None and {run.labels_per_class for run in found.runs} == {4}
    assert {Path(run.run).name for run in found.runs} == {"01-swav-seed-0", "02-other-seed-0"}
    assert "pretraining, min" in str(found)
    with pytest.raises(UsageError, match="began with labels_per_class"):
        unfreeze.compare(data, labels_per_class=(2, 4), resume=True, **given)


def test_label_counts_are_ascending_and_distinct():
    assert label_counts(CompareSettings(labels_per_class=(8, 2))) == (2, 8)
    assert label_counts(CompareSettings()) == (None,)
    with pytest.raises(UsageError, match="repeats a number"):
        label_counts(CompareSettings(labels_per_class=(3, 3)))


def test_weights_that_do_not_tell_their_minutes(starts, tmp_path):
    tensors, card = load_model(starts[0])
    del card.provenance["seconds"]
    save_model(tmp_path / "old", tensors, card)
    assert pretraining_seconds(str(tmp_path / "old")) is None
    assert pretraining_seconds("imagenet") is None and pretraining_seconds("none") == 0
