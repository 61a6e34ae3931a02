"""The demo's table is read back from its runs."""

import json

import pytest

import unfreeze
from unfreeze.commands import demo as module
from unfreeze.commands.evaluate import evaluate
from unfreeze.errors import Interrupted


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LABELS", (1, 3))
        patch.setitem(module.COMMON, "epochs", 2)
        result = unfreeze.demo(out=str(folder), epochs=1, seeds=2, device="cpu")
    return result, folder


@pytest.mark.slow
def test_every_number_is_that_of_a_runs_own_evaluation(done):
    result, folder = done
    scores = json.loads((folder / "demo.json").read_text())["scores"]
    for method in ("scratch", "swav"):
        for n in ("1", "3"):
            again = [
                evaluate(
                    str(folder / f"{method}-{n}-labels-seed-{seed}"), "digits", split="test"
                ).accuracy
                for seed in range(2)
            ]
            assert scores[method][n] == again
            assert result.results[method][n][0] == pytest.approx(sum(again) / 2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.real_charts
def test_all_methods_learn_from_the_same_images_and_the_head_alone_moves(done):
    _, folder = done
    for n in (1, 3):
        for seed in range(2):
            lists = [
                (folder / f"{m}-{n}-labels-seed-{seed}/split.csv").read_text()
                for m in ("scratch", "swav")
            ]
            assert lists[0] == lists[1]
            assert lists[0].count(",train") == 10 * n
    first = (folder / "swav-3-labels-seed-0/split.csv").read_text()
    assert first != (folder / "swav-3-labels-seed-1/split.csv").read_text()


def test_pixels_beat_chance_and_the_report_stands(done):
    result, folder = done
    assert result.results["pixels"]["3"][0] > 0.5
    assert result.report == str(folder / "report.html") and (folder / "report.html").exists()
    assert (folder / "pretrain/model/model.json").exists() and result.seconds > 0


def test_without_out_a_new_numbered_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert module._new_folder() == "runs/demo-001"
    assert module._new_folder() == "runs/demo-002"


def test_a_dry_run_is_a_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unfreeze.demo(dry_run=True).images == 1437
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_stopped_promises_no_resuming(tmp_path, monkeypatch):
    def stopped(settings, console):
        raise Interrupted("Stopped.", "Resume with: ...")

    monkeypatch.setattr(module, "run_pretrain", stopped)
    with pytest.raises(Interrupted) as caught:
        unfreeze.demo(out=str(tmp_path / "demo"), device="cpu")
    assert "--resume" not in str(caught.value) and str(tmp_path / "demo") in caught.value.sentence
