"""`--folds` and `--repeats`: how sure an accuracy is, and what it costs."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unfreeze.commands.finetune import finetune
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import DataError, Interrupted, UsageError
from unfreeze.experiments.cross_validation import FoldResult, combine, summary_line
from unfreeze.reports.intervals import wilson_interval, wilson_of_share
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.transfer.feature_cache import store

pytestmark = pytest.mark.usefixtures("no_drawing")
TINY = {"arch": "unfreeze/tiny", "weights": "none", "precision": "fp32", "epochs": 3}
FROZEN = {**TINY, "freeze": "all", "augment": "none", "sweep": "off", "select": "accuracy"}


@pytest.fixture(scope="module")
def data(colours, tmp_path_factory):
    return str(colours(tmp_path_factory.mktemp("d") / "c", {"red": 12, "green": 9, "blue": 9}))


@pytest.fixture
def tune(data, tmp_path):
    return lambda name, **options: finetune(data, out=str(tmp_path / name), **options)


def weights(result):
    return load_file(f"{result.model}/model.safetensors")


def splits(run):
    rows = read_split_csv(Path(run) / "split.csv")
    return [{r.path for r in rows if r.split == name} for name in ("train", "val")]


def test_every_image_is_held_out_once_and_the_model_is_the_one_without(tune, tmp_path):
    result, plain = tune("folded", folds=3, **FROZEN), tune("plain", **FROZEN)
    left, right = weights(result), weights(plain)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert result.val_accuracy == plain.val_accuracy and plain.repeated is None
    found = result.repeated
    assert (found.folds, found.seeds, found.n, len(found.runs)) == (3, [0], 30, 3)
    everything = set.union(*splits(plain.run))
    held = [splits(part.run)[1] for part in found.runs]
    assert set.union(*held) == everything and sum(map(len, held)) == 30
    for part, own in zip(found.runs, held, strict=True):
        assert splits(part.run)[0] == everything - own and part.n == 10
        classes = [path.split("/")[0] for path in own]
        assert [classes.count(c) for c in ("red", "green", "blue")] == [4, 3, 3]
        last = [m for m in read_metrics(part.run) if m["split"] == "val"][-1]
        assert part.correct_last == last["correct"]
    right = sum(part.correct_last for part in found.runs)
    assert found.accuracy == pytest.approx(right / 30)
    assert found.interval == pytest.approx(wilson_interval(right, 30))
    assert json.loads((tmp_path / "folded/folds.json").read_text())["n"] == 30
    assert found.chose == "the epoch alone"


@pytest.mark.slow
def test_features_are_computed_once_for_all_and_are_the_same(tune, monkeypatch):
    written = []
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *a: (written.append(a[0].key), write(*a)))
    start = tune("start", **{**TINY, "epochs": 1})  # random weights would be other ones each seed
    options = {**FROZEN, "folds": 3, "repeats": 2, "weights": start.run}
    found = tune("kept", cache="features", **options)
    # one pass as training reads and one as validation does; and those of the run itself
    assert len(written) == len(set(written)) == 4
    plain = tune("plain", cache="off", **options)
    assert len(written) == 4
    assert [p.correct for p in found.repeated.runs] == [p.correct for p in plain.repeated.runs]
    last = [[p.correct_last for p in r.repeated.runs] for r in (found, plain)]
    assert last[0] == last[1]
    for one, other in zip(found.repeated.runs, plain.repeated.runs, strict=True):
        left, right = (load_file(Path(p.run) / "model/model.safetensors") for p in (one, other))
        assert all(torch.allclose(left[n], right[n], atol=1e-4) for n in left)
    assert found.repeated.seeds == [0, 1] and len(found.repeated.accuracies) == 2


@pytest.mark.slow
def test_finished_folds_are_not_trained_again(tune, stopped_after, tmp_path):
    options = {"folds": 3, **TINY}
    straight = tune("straight", **options)
    with stopped_after(22) as steps:  # in the second fold: each has 15 steps
        with pytest.raises(Interrupted, match="Stopped in seed-0-fold-2"):
            tune("broken", **options)
        assert not (tmp_path / "broken/model").exists()
        resumed = tune("broken", resume="auto", **options)
        assert len(steps) == 4 * 15 + 3
    runs = [[vars(p) | {"run": 0} for p in r.repeated.runs] for r in (straight, resumed)]
    assert runs[0] == runs[1]
    left, right = weights(straight), weights(resumed)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_what_was_stopped_goes_on_as_it_was_asked_with_nothing_said_again(tune, stopped_after):
    """The next step that is told names the folder alone; each fold's plan is its own."""
    options = {**FROZEN, "sweep": "auto", "folds": 2, "epochs": 4}
    straight = tune("straight", **options)
    for name, steps in (("in-a-fold", 5), ("in-the-run", 40)):
        with stopped_after(steps), pytest.raises(Interrupted):
            tune(name, **options)
        resumed = tune(name, resume="yes")
        left, right = weights(straight), weights(resumed)
        assert all(torch.equal(left[n], right[n]) for n in left)
        assert resumed.repeated.accuracies == straight.repeated.accuracies
        assert resumed.repeated.chose == "rates, too"
    assert tune("in-the-run", resume="yes").repeated == resumed.repeated  # a finished one


def test_repeats_hold_out_other_images(tune):
    result = tune("repeated", repeats=3, **FROZEN)
    found = result.repeated
    held = [splits(part.run)[1] for part in found.runs]
    different = len(set.union(*held))
    assert (found.folds, found.seeds, found.n) == (0, [0, 1, 2], different) and different < 18
    assert len({frozenset(one) for one in held}) == 3 and splits(result.run)[1] == held[0]
    assert found.deviation is not None
    low, high = found.interval
    assert low <= found.accuracy <= high


def test_the_datas_own_val_is_not_more_images_for_being_judged_again(coloured, tmp_path):
    data = coloured("d", {f"{part}/{name}": 6 for part in ("train", "val") for name in ("a", "b")})
    result = finetune(str(data), out=str(tmp_path / "run"), repeats=3, **FROZEN)
    found = result.repeated
    assert found.n == 12 and [part.n for part in found.runs] == [12] * 3
    low, high = wilson_of_share(found.accuracy, 12)
    assert found.interval[0] <= low and found.interval[1] >= high
    assert "the same validation images" in summary_line(found)


def test_groups_stay_whole(coloured, tmp_path):
    folder = coloured("g", {"red": 12, "blue": 12})
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(path.with_name(f"p{number % 12 // 2}_{path.name}"))
    options = {**FROZEN, "folds": 3, "group_by": r"(p\d+)_"}
    result = finetune(str(folder), out=str(tmp_path / "run"), **options)
    for part in result.repeated.runs:
        train, val = ({path.split("/")[1][:2] for path in one} for one in splits(part.run))
        assert train and val and not train & val


def test_too_many_folds_are_refused_in_words(tune):
    with pytest.raises(
        DataError, match=r"folds=10 is not possible: the class 'blue' has only 9 images"
    ) as caught:
        tune("many", folds=10, **FROZEN)
    assert "Use 2 to 9 folds" in str(caught.value.next_step)


def test_finished_folds_of_another_training_are_not_taken(tune, stopped_after):
    with stopped_after(22), pytest.raises(Interrupted):  # the first fold has 15 steps
        tune("broken", folds=3, **TINY)
    with pytest.raises(UsageError, match="seed-0-fold-1 was trained with epochs=3, not 5"):
        tune("broken", folds=3, resume="auto", **{**TINY, "epochs": 5})


def test_a_dry_run_counts_them_and_refuses_what_cannot_be(tune):
    planned = tune("none", folds=3, repeats=2, dry_run=True, **FROZEN)
    assert planned.reasons["folds"] == "6 runs before this one"
    with pytest.raises(DataError, match="folds=10"):
        tune("none", folds=10, dry_run=True, **FROZEN)


def test_a_sweep_is_said_to_have_chosen(tune):
    result = tune("swept", folds=2, **{**FROZEN, "sweep": "auto"})
    assert result.repeated.chose == "rates, too"
    config = tomllib.loads(Path(result.repeated.runs[0].run, "config.toml").read_text())
    assert len(config["facts"]["tried"]) == 18


def test_seeds_and_images_both_widen_the_interval():
    def parts(*correct):
        return [FoldResult("", s, 0, 100, c, c) for s, c in enumerate(correct)]

    def all_of(some, images=100, folds=2):
        return combine(some, "", folds=folds, images=images)

    same, apart = all_of(parts(80, 80, 80)), all_of(parts(70, 80, 90))
    assert [same.accuracy, apart.accuracy] == pytest.approx([0.8, 0.8])
    assert same.deviation == pytest.approx(0) and apart.deviation == pytest.approx(
        np.std([0.7, 0.8, 0.9], ddof=1)
    )
    assert apart.interval[0] < same.interval[0] < 0.8 < same.interval[1] < apart.interval[1]
    more = all_of(parts(80, 80, 80), 250, folds=0)  # some were held out by two of the three
    assert same.n == 100 and more.n == 250 and more.interval[0] > same.interval[0]
    assert "different validation splits" in summary_line(more)
    assert "2 folds, 3 seeds" in summary_line(
        apart
    ) and "accuracy 0.800 on 100 images" in summary_line(apart)
