"""`--on-collapse recover`: back to what was good with one thing changed, exactly and said so."""

import dataclasses
import tomllib

import pytest
import torch
from safetensors.torch import load_file

import unfreeze
from unfreeze.errors import DivergedError, Interrupted
from unfreeze.runtime.run_folder import RunFolder, read_metrics
from unfreeze.swav.collapse_detector import Collapse, CollapseDetector
from unfreeze.swav.feature_evaluation import FeatureEvaluation, FeatureEvaluator
from unfreeze.swav.trainer import PretrainTrainer

GIVEN = {
    "epochs": 4,
    "limit": 160,
    "batch_size": 32,
    "nmb_prototypes": 16,
    "queue_length": 64,
    "epoch_queue_starts": 1,
    "augment": "digits",
    "epsilon": 0.05,
    "device": "cpu",
    "watch_every": 2,
    "on_collapse": "recover",
}


@pytest.fixture
def collapses(monkeypatch):
    """`collapses(7, 9)`: the guard speaks at these steps, once each; state is good before 6."""
    record = CollapseDetector.record

    def at(*steps):
        left = list(steps)

        def judged(self, step, steps, loss, code_entropy):
            record(self, step, steps, loss, code_entropy)
            self.share = self.lowest = 0.5 if step < 6 else 1.0
            if left and step == left[0]:
                return Collapse(left.pop(0), "stuck", "made up")
            return None

        monkeypatch.setattr(CollapseDetector, "record", judged)

    return at


def run(out, **changed):
    return unfreeze.pretrain("digits", out=str(out), **{**GIVEN, **changed})


def state(out, name="last"):
    return torch.load(out / f"checkpoints/{name}.ckpt", weights_only=True)


def test_it_goes_back_to_the_last_good_state_with_the_first_remedy(collapses, tmp_path):
    collapses(7)
    out = tmp_path / "run"
    found = run(out)
    (one,) = found.recoveries
    assert (one["collapsed_at"], one["back_to"], one["remedy"]) == (7, 5, "--epsilon 0.03")
    assert one["worked"] is True and one["diagnosis"] == "made up"
    assert found.steps == 20 and state(out)["settings"]["epsilon"] == 0.03
    assert tomllib.loads((out / "config.toml").read_text())["epsilon"] == 0.03
    records = read_metrics(out)
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 21))
    (said,) = (r for r in records if r["split"] == "recovery")
    assert (said["step"], said["remedy"], said["collapsed_at"]) == (5, "--epsilon 0.03", 7)
    log = (out / "log.txt").read_text()
    assert (
        "Resuming from step 5 with --epsilon 0.03" in log
        and "Recovered from collapse with: --epsilon 0.03" in log
    )


@pytest.mark.slow
def test_what_follows_is_the_run_that_had_the_remedy_from_there(collapses, tmp_path, monkeypatch):
    collapses(7)
    run(tmp_path / "run")
    collapses()
    step = PretrainTrainer.train_step

    def sharper(self, batch):
        self.assigner.epsilon = 0.05 if self.step < 5 else 0.03
        return step(self, batch)

    monkeypatch.setattr(PretrainTrainer, "train_step", sharper)
    run(tmp_path / "straight", on_collapse="stop")
    one, other = state(tmp_path / "run"), state(tmp_path / "straight")
    assert all(torch.equal(one["model"][n], other["model"][n]) for n in one["model"])
    assert torch.equal(one["bank"]["features"], other["bank"]["features"])


def test_one_remedy_after_another_from_the_start_and_then_the_collapse(collapses, tmp_path):
    collapses(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(DivergedError, match="made up") as error:
        run(tmp_path / "run", temperature=0.2)
    log = (tmp_path / "run/log.txt").read_text()
    tried = [
        line.split(" with ")[1].split(" (")[0]
        for line in log.splitlines()
        if "Resuming from step" in line
    ]
    kinds = [flags.split()[0] for flags in tried]
    assert len(kinds) == len(set(kinds)) >= 5 and kinds[0] == "--epsilon"
    assert "--queue-length" in kinds and "--temperature" in kinds
    assert "Tried: epsilon=0.03" in error.value.next_step


@pytest.mark.slow
def test_the_best_look_of_what_was_given_up_is_not_the_runs(collapses, tmp_path, monkeypatch):
    """Its weights would be called those of an earlier epoch."""
    collapses(12)
    scores = iter([0.0, 0.5, 0.9, 0.1, 0.1, 0.1])  # epoch 2 is the best, and is dropped

    seen = FeatureEvaluator._evaluate

    def made_up(self, trainer, epochs):
        look = seen(self, trainer, epochs)
        return dataclasses.replace(look, figures={**look.figures, "made up": next(scores)})

    monkeypatch.setattr(FeatureEvaluator, "_evaluate", made_up)
    monkeypatch.setattr(FeatureEvaluation, "score", property(lambda look: look.figures["made up"]))
    found = run(tmp_path / "run", watch_every=1, keep="best")
    assert (found.best["epoch"], found.best["value"]) == (1, 0.5)
    best = state(tmp_path / "run", "best")
    assert best["step"] == 5
    kept = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(best["model"][f"backbone.{n}"], t) for n, t in kept.items())


@pytest.mark.slow
def test_fewer_prototypes_start_anew(collapses, tmp_path):
    collapses(7, 7)
    given = {"epsilon": 0.03, "freeze_prototypes_niters": 5, "base_lr": 1e-4}
    given |= {"min_scale_crops": (0.6,), "nmb_prototypes": 40, "queue_length": 0}
    found = run(tmp_path / "run", **given)  # what comes before is tried or does not apply
    assert [r["remedy"].split()[0] for r in found.recoveries] == ["--base-lr", "--nmb-prototypes"]
    assert [(r["back_to"], r["worked"]) for r in found.recoveries] == [(5, False), (0, True)]
    assert len(state(tmp_path / "run")["model"]["prototypes.weight"]) == 20
    assert found.steps == 20


@pytest.mark.slow
def test_a_resumed_run_keeps_what_was_changed_whatever_it_is_told(collapses, tmp_path, monkeypatch):
    collapses(7)
    run(tmp_path / "straight")
    collapses(7)
    step = PretrainTrainer.train_step

    def stopped(self, batch):
        if self.step == 12:
            self.save()
            raise Interrupted("now")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "train_step", stopped)
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    collapses()
    found = run(tmp_path / "run", resume="yes", epsilon=0.05)
    assert found.recoveries[0]["worked"] is True
    one, other = state(tmp_path / "run"), state(tmp_path / "straight")
    assert all(torch.equal(one["model"][n], other["model"][n]) for n in one["model"])
    assert (
        "recovered from a collapse with changed settings: --epsilon 0.03"
        in RunFolder(tmp_path / "run").file("log.txt").read_text()
    )


def test_a_run_that_kept_nothing_to_go_back_to_stops_with_advice(collapses, tmp_path):
    collapses(7)
    with pytest.raises(DivergedError):
        run(tmp_path / "run", on_collapse="stop")
    assert state(tmp_path / "run")["step"] == 7
    collapses(8)
    with pytest.raises(DivergedError, match=r"epsilon=0\.03"):
        run(tmp_path / "run", resume="yes")


def _shared(rank, folder):
    found = run(folder, sync_bn="all", workers=0)
    return found.recoveries, found.loss


@pytest.mark.slow
def test_many_processes_recover_together(processes, collapses, tmp_path):
    collapses(7)
    one, other = processes(2, _shared, tmp_path / "run")
    assert one == other and one[0][0]["worked"] is True


def _apart(rank, folder, stops):
    out = folder / str(rank)  # as on the disks of two machines
    if not stops:
        return run(out, sync_bn="all", workers=0, resume="auto").recoveries
    step = PretrainTrainer.train_step

    def stopped(self, batch):
        if self.step == 12:
            self.save()
            raise Interrupted("now")
        return step(self, batch)

    PretrainTrainer.train_step = stopped  # in a process of its own
    with pytest.raises(Interrupted):
        run(out, sync_bn="all", workers=0)
    return []


@pytest.mark.slow
def test_only_the_first_process_needs_the_runs_folder(processes, collapses, tmp_path):
    collapses(7)
    processes(2, _apart, tmp_path, True)
    collapses()
    one, other = processes(2, _apart, tmp_path, False)
    assert one == other and one[0]["remedy"] == "--epsilon 0.03"
    assert not (tmp_path / "1").exists()


@pytest.mark.slow
def test_a_run_made_to_collapse_recovers(tmp_path):
    given = {"epsilon": 1.0, "limit": 500, "epochs": 10, "min_scale_crops": (0.5,)}
    with pytest.raises(DivergedError):
        run(tmp_path / "stopped", **{**given, "on_collapse": "stop", "queue_length": 0})
    found = run(tmp_path / "run", **given, queue_length=0)
    assert [r["worked"] for r in found.recoveries] == [True]
    assert found.recoveries[0]["remedy"] == "--epsilon 0.03"
    stopped = [r for r in read_metrics(tmp_path / "stopped") if "knn_accuracy" in r]
    assert found.figures["information"] > 0.05
    assert found.knn["accuracy"] > stopped[-1]["knn_accuracy"] + 0.05
