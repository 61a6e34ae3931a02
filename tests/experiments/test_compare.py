"""compare: the same images for every start, test read once a run, and an honest sentence."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import unfreeze
from unfreeze.cli.main import main
from unfreeze.commands import compare as command
from unfreeze.commands.compare import best_on_validation, compare, plan_run, train_and_evaluate
from unfreeze.commands.report import report
from unfreeze.config.commands import CompareSettings
from unfreeze.config.layering import as_dict, read_toml
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import DataError, Interrupted, UsageError, WeightsError
from unfreeze.experiments.compare_starts import all_starts, compare_runs
from unfreeze.reports.page import run_page
from unfreeze.reports.run_reader import read_run
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.runtime.terminal import Environment
from unfreeze.transfer.plan import FinetuneFacts, plan

ONE = {"epochs": 1, "augment": "none", "precision": "fp32", "val": 0.25}


def page_of_comparison(folder):
    """The page of a comparison, none of its runs: drawing takes longer than a tiny training."""
    if (Path(folder) / "compare.json").exists():
        report(folder)


@pytest.fixture(autouse=True)
def _no_pages_of_runs(monkeypatch):
    monkeypatch.setattr(command, "report", page_of_comparison)


@pytest.fixture(scope="module")
def data(colours, tmp_path_factory):
    counts = {f"{split}/{c}": 12 for split in ("train", "test") for c in ("blue", "green", "red")}
    return str(colours(tmp_path_factory.mktemp("data") / "colours", counts))


@pytest.fixture(scope="module")
def good(data, tmp_path_factory):
    """Weights that know the colours already: a start that must pay."""
    out = tmp_path_factory.mktemp("good") / "knows-colours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None)
        made = unfreeze.finetune(
            data,
            out=str(out),
            arch="unfreeze/tiny",
            weights="none",
            epochs=12,
            lr=0.1,
            augment="none",
            val=0,
        )
    assert unfreeze.evaluate(str(out), data).accuracy == 1
    return made.run


@pytest.fixture(scope="module")
def done(data, good, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "cmp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "report", page_of_comparison)
        found = compare(data, ["none", good], out=str(out), seeds=2, freeze="all", lr=0.003, **ONE)
    return found


def test_T13_it_says_whether_pretraining_paid(done):
    none, ours = done.starts
    assert ours.accuracy > 0.9 > none.accuracy + 0.2
    (apart,) = done.differences
    assert apart.verdict == "better" and apart.interval[0] > 0
    assert apart.difference == pytest.approx(ours.accuracy - none.accuracy)
    assert done.verdict.startswith("Pretraining paid: knows-colours is")
    assert (done.n, done.split, done.seeds) == (36, "test", [0, 1])
    assert done.same_images and done.rates == "one"


def test_T13_it_says_that_it_cannot_tell(data, good, tmp_path):
    again = Path(good).parent / "twin"
    if not again.exists():
        again.symlink_to(good)
    found = compare(
        data, [good, str(again)], out=str(tmp_path / "cmp"), seeds=1, freeze="all", **ONE
    )
    assert found.differences[0].difference == 0 and found.differences[0].verdict == "open"
    assert found.verdict.startswith("Can't tell") and "One seed" in found.verdict


def test_every_start_gets_the_same_images_network_and_size(done):
    assert [Path(one.run).name for one in done.runs] == [
        "01-none-seed-0", "02-knows-colours-seed-0", "01-none-seed-1", "02-knows-colours-seed-1"
    ]  # fmt: skip
    splits = {one.run: set(read_split_csv(Path(one.run) / "split.csv")) for one in done.runs}
    none_0, ours_0, none_1, ours_1 = splits.values()
    assert none_0 == ours_0 != none_1 == ours_1
    settings = [read_toml(str(Path(one.run) / "config.toml")) for one in done.runs]
    for name in ("arch", "stem", "image_size", "mean", "std", "epochs", "batch_size", "freeze"):
        assert len({str(s[name]) for s in settings}) == 1, name
    assert [s["seed"] for s in settings] == [0, 0, 1, 1]
    steps = {max(m["step"] for m in read_metrics(one.run)) for one in done.runs}
    assert len(steps) == 1


def test_a_start_from_nothing_reads_images_as_the_run_does(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unfreeze.commands.finetune.write_report_or_warn", lambda run, console: None
    )
    how = {**ONE, "arch": "unfreeze/tiny", "weights": "none", "range": "percentile"}
    own = unfreeze.finetune(data, out=str(tmp_path / "own"), channels=(2, 1, 0), **how).run

    def read(**changed):
        ready = all_starts(
            CompareSettings(data=(data,), weights=("none", own), **changed), plan_run
        )
        return {one.name: (one.settings.range, one.settings.channels) for one in ready}

    assert read()["none"] == ("percentile", (2, 1, 0))
    assert read(range="auto") == {"none": ("auto", (2, 1, 0)), "own": ("auto", None)}


def test_what_is_said_is_what_the_runs_left(done):
    for start in done.starts:
        own = [one for one in done.runs if one.weights == start.weights]
        assert start.accuracies == [one.accuracy for one in own]
        for one in own:
            kept = json.loads((Path(one.run) / "evaluation.json").read_text())
            assert (kept["accuracy"], kept["split"], kept["n"]) == (one.accuracy, "test", 36)
    rows = list(csv.DictReader(Path(done.table).read_text().splitlines()))
    assert [float(row["accuracy"]) for row in rows] == [one.accuracy for one in done.runs]
    kept = json.loads((Path(done.out) / "compare.json").read_text())
    assert kept["verdict"] == done.verdict and len(kept["runs"]) == 4
    html = Path(done.report).read_text()
    assert "Pretraining paid" in html and "knows-colours" in html
    assert "<dd>unfreeze/tiny</dd>" in html
    assert html.count("<svg") == 3 and html == run_page(read_run(done.out))


def test_pain_25_test_images_are_read_once_a_run_at_its_end(done, data, monkeypatch):
    for one in done.runs:
        uses = json.loads((Path(one.run) / "test_uses.json").read_text())["uses"]
        assert [(use["split"], use["n"]) for use in uses] == [("test", 36)] and one.test_uses == 1
        used = {row.path for row in read_split_csv(Path(one.run) / "split.csv")}
        assert not any(path.startswith("test/") for path in used)
    planned = command.run_finetune

    def only_plans(settings, console, **more):
        assert settings.dry_run
        return planned(settings, console, **more)

    monkeypatch.setattr(command, "run_finetune", only_plans)  # nothing is trained again,
    monkeypatch.setattr(command, "evaluate_with_predictions", None)  # nor evaluated
    again = compare(data, [r.weights for r in done.starts], out=done.out, resume=True)
    assert again.runs == done.runs and again.verdict == done.verdict


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(data, good, tmp_path, monkeypatch):
    settings = {"out": str(tmp_path / "cmp"), "seeds": 2, "freeze": "all", "lr": 0.5, **ONE}
    trained = []

    def stopping(trial, *rest, **more):
        if len(trained) == 2:
            raise Interrupted("Stopped.", "Resume with: unfreeze finetune ...")
        trained.append(trial.folder.name)
        return train_and_evaluate(trial, *rest, **more)

    monkeypatch.setattr("unfreeze.commands.compare.train_and_evaluate", stopping)
    with pytest.raises(Interrupted, match="run 3 of 4") as caught:
        compare(data, ["none", good], **settings)
    assert "unfreeze.compare(" in caught.value.next_step and "resume=True" in caught.value.next_step
    assert not (tmp_path / "cmp" / "compare.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(command, "report", page_of_comparison)
    done, ran = command.run_finetune, []
    monkeypatch.setattr(
        command,
        "run_finetune",
        lambda s, *a, **k: (not s.dry_run and ran.append(Path(s.out).name)) or done(s, *a, **k),
    )
    found = compare(data, ["none", good], resume=True, **settings)
    assert ran == ["01-none-seed-1", "02-knows-colours-seed-1"] and len(found.runs) == 4
    with pytest.raises(UsageError, match="began with epochs=1"):
        compare(data, ["none", good], resume=True, **{**settings, "epochs": 2})
    with pytest.raises(UsageError, match="began with weights"):
        compare(data, [good, "none"], resume=True, **settings)
    grown = compare(data, ["none", good], resume=True, **{**settings, "seeds": 3})
    assert len(ran) == 4 and len(grown.runs) == 6 and grown.runs[:4] == found.runs


def test_more_weights_leave_results_valid_that_would_be_the_same(good):
    def run_settings(*weights, image_size=16):
        def plan_of(s):
            derived = {"arch": "unfreeze/tiny", "stem": "small", "image_size": image_size}
            derived |= {"mean": [0.5] * 3, "std": [0.2] * 3}
            return SimpleNamespace(settings={**as_dict(s), **derived})

        s = CompareSettings(data=("d",), weights=weights, seeds=1)
        return [run.result_settings() for run in compare_runs(s, all_starts(s, plan_of), Path())]

    two = run_settings("none", "imagenet")
    assert run_settings("none", "imagenet", good)[:2] == two
    assert run_settings("none", "imagenet", image_size=32) != two


@pytest.mark.parametrize(
    ("given", "scratch"), [({}, "adamw"), ({"lr": 0.1}, "sgd"), ({"rates": (0.1, 0.2)}, "sgd")]
)  # the others are as of a vision transformer
def test_a_given_learning_rate_is_that_of_one_optimizer(given, scratch):
    def plan_of(s):
        derived = {"arch": "unfreeze/tiny", "stem": "small", "image_size": 16}
        derived |= {"mean": [0.5] * 3, "std": [0.2] * 3}
        about = FinetuneFacts(99, "unfreeze/tiny", "small", False, s.weights != "none")
        return SimpleNamespace(
            settings=as_dict(plan(s, about, Preprocess(16, 16)).settings) | derived
        )

    s = CompareSettings(data=("d",), weights=("none", "imagenet"), **given)
    found = [start.plan.settings["optimizer"] for start in all_starts(s, plan_of)]
    assert found == [scratch, "sgd"]


@pytest.mark.slow
def test_of_several_rates_validation_picks_and_only_that_run_sees_test(data, good, tmp_path):
    found = compare(
        data, ["none", good], out=str(tmp_path / "cmp"), seeds=1, freeze="all",
        rates=[1e-6, 0.5], **ONE,
    )  # fmt: skip
    folders = sorted(path.name for path in (tmp_path / "cmp").iterdir() if path.is_dir())
    assert folders == [
        "01-none-seed-0-lr-0.5", "01-none-seed-0-lr-1e-06",
        "02-knows-colours-seed-0-lr-0.5", "02-knows-colours-seed-0-lr-1e-06",
    ]  # fmt: skip
    judged = [name for name in folders if (tmp_path / "cmp" / name / "test_uses.json").exists()]
    assert judged == sorted(Path(one.run).name for one in found.runs)
    assert found.starts[1].rates == [0.5] and found.rates == "several"
    for one in found.runs:
        val = {
            f: max(m["accuracy"] for m in read_metrics(f) if m["split"] == "val")
            for f in (tmp_path / "cmp").glob(f"{Path(one.run).name.split('-lr-')[0]}-lr-*")
        }
        assert val[Path(one.run)] == max(val.values()) == one.val_accuracy
    with pytest.raises(UsageError, match="lr and rates exclude each other"):
        compare(data, ["none", good], out=str(tmp_path / "new"), lr=0.1, rates=[0.1, 0.2])


@pytest.mark.slow
def test_a_head_that_sweeps_by_itself_needs_no_rates(data, good, tmp_path):
    kept = {**ONE, "epochs": 3, "cache": "features", "select": "accuracy", "head_solver": "sgd"}
    found = compare(data, ["none", good], out=str(tmp_path / "a"), seeds=1, freeze="all", **kept)
    assert found.rates == "several" and all(one.tried > 1 for one in found.runs)
    for one in found.runs:
        swept = [m for m in read_metrics(one.run) if m["split"] == "sweep"]
        top = max(m["val_accuracy"] for m in swept)
        assert one.lr in {m["learning_rate"] for m in swept if m["val_accuracy"] == top}
    found = compare(data, ["none", good], out=str(tmp_path / "b"), seeds=1, limit=9, **ONE)
    assert found.rates == "own" and "--rates tries several" in found.verdict


def test_without_validation_no_rate_can_be_picked(data, good, tmp_path):
    with pytest.raises(DataError, match="rates needs a validation set"):
        compare(
            data, ["none", good], out=str(tmp_path / "cmp"), seeds=1, freeze="all",
            rates=[0.1, 0.5], **{**ONE, "val": 0},
        )  # fmt: skip
    assert best_on_validation([None]) is None  # one run needs no choice


@pytest.mark.slow
def test_without_a_test_split_validation_judges_and_it_is_said(coloured, good, tmp_path):
    plain = str(coloured("plain", {"blue": 8, "green": 8, "red": 8}))
    found = compare(
        plain, ["none", good], out=str(tmp_path / "a"), seeds=2, freeze="all", lr=0.5, **ONE
    )
    assert (found.split, found.n) == ("val", 6)
    assert "chose the epochs" not in found.verdict  # six images choose nothing
    assert all(one.test_uses == 0 for one in found.runs)
    with pytest.raises(DataError, match="Nothing to evaluate on"):
        compare(plain, ["none", good], out=str(tmp_path / "b"), **{**ONE, "val": 0})
    other = str(coloured("other", {"blue": 5, "green": 5, "red": 5}))
    found = compare(
        plain, ["none", good], out=str(tmp_path / "c"), seeds=1, freeze="all", test=other,
        **{**ONE, "val": 0},
    )  # fmt: skip
    assert (found.split, found.n) == ("all", 15)


def test_weights_that_cannot_be_had_are_found_before_anything_is_trained(data, tmp_path):
    import torch

    from unfreeze.checkpoints.model_file import ModelCard, save_model

    save_model(tmp_path / "odd", {"x": torch.zeros(2)}, ModelCard("backbone", "unfreeze/tiny"))
    with pytest.raises(WeightsError):
        compare(data, ["none", str(tmp_path / "odd")], out=str(tmp_path / "cmp"), **ONE)
    assert not list(tmp_path.glob("cmp/0*"))


def test_wrong_use_is_told(data, good, tmp_path):
    with pytest.raises(UsageError, match="two or more"):
        compare(data, ["none"], out=str(tmp_path / "x"))
    with pytest.raises(UsageError, match="two or more"):
        compare(data, ["none", "none"], out=str(tmp_path / "x"))
    with pytest.raises(UsageError, match="needs an output folder"):
        compare(data, ["none", good])


def test_weights_of_other_networks_keep_their_own(data, good, tmp_path):
    from dataclasses import replace

    from unfreeze.checkpoints.model_file import load_model, save_model
    from unfreeze.models.build import build
    from unfreeze.models.head import remove_head

    network = build("unfreeze/small")
    remove_head(network)
    _, card = load_model(good)
    save_model(tmp_path / "other", network.state_dict(), replace(card, arch="unfreeze/small"))
    settings = CompareSettings(data=(data,), weights=("none", good, str(tmp_path / "other")))
    starts = all_starts(settings, plan_run)
    arches = [start.plan.settings["arch"] for start in starts]
    assert arches == ["unfreeze/tiny", "unfreeze/tiny", "unfreeze/small"]


def test_a_dry_run_names_every_run_and_touches_nothing(data, good, tmp_path):
    world = Environment(io.StringIO(), io.StringIO())
    words = ["compare", data, "--weights", "none", good, "--seeds", "2", "--dry-run"]
    assert main([*words, "--out", str(tmp_path / "x")], world) == 0
    said = world.stderr.getvalue()
    assert "4 runs; evaluated on test of" in said and "knows-colours  unfreeze/tiny" in said
    plan = compare(data, ["none", good], seeds=2, dry_run=True)
    assert plan.runs[-1] == "02-knows-colours-seed-1" and not list(tmp_path.iterdir())


def test_the_command_line_tells_the_verdict(done, data, capsys):
    words = ["compare", data, "--weights", *[s.weights for s in done.starts]]
    assert main([*words, "--out", done.out, "--resume"]) == 0
    said = capsys.readouterr()
    assert "Pretraining paid" in said.out and "knows-colours" in said.out
    assert "already finished" in said.err
