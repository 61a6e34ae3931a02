"""A table of runs: finished ones are read, others are run, and results name their settings."""

import json
from dataclasses import dataclass, replace

import pytest

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import DataError, Interrupted, UsageError
from unfreeze.experiments.run_table import RESULT_FILE, RunSpec, run_all, stored_result
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import init_distributed


@dataclass(frozen=True)
class Score:
    """A result."""

    seed: int
    right: float


class Lines(QuietConsole):
    """A console that remembers its lines."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def read(record):
    return Score(**record)


@pytest.fixture
def specs(tmp_path):
    settings = [FinetuneSettings(data=("d",), seed=seed, mean=(0.1, 0.2, 0.3)) for seed in range(3)]
    return [RunSpec(f"run-{s.seed}", tmp_path / f"run-{s.seed}", s) for s in settings]


@pytest.fixture
def results(specs):
    """`results(specs, stop_at=2)`: (results, lines, seeds that were run)."""

    def run(specs, stop_at=None):
        console, ran = Lines(), []

        def run_one(spec):
            if spec.settings.seed == stop_at:
                raise Interrupted("At step 5.", "Resume the run.")
            ran.append(spec.settings.seed)
            return Score(spec.settings.seed, 1 / (3 + spec.settings.seed))

        try:
            scores = run_all(
                specs,
                run_one,
                read,
                console,
                summary=lambda score: f"{score.right:.2f}",
                stopped=lambda number, error: f"Stopped in run {number}. {error.sentence}",
                resume="Resume all.",
                finished=" (finished)",
            )
        except Interrupted as error:
            scores = error
        return scores, console.lines, ran

    return run


def test_an_interrupted_table_continues_with_the_run_that_was_stopped(specs, results):
    error, lines, ran = results(specs, stop_at=1)
    assert (error.sentence, error.next_step) == ("Stopped in run 2. At step 5.", "Resume all.")
    assert lines == ["1/3 run-0: 0.33"] and ran == [0]
    scores, lines, ran = results(specs)
    assert lines == ["1/3 run-0: 0.33 (finished)", "2/3 run-1: 0.25", "3/3 run-2: 0.20"]
    assert ran == [1, 2] and scores == [Score(0, 1 / 3), Score(1, 1 / 4), Score(2, 1 / 5)]
    assert results(specs)[0] == scores and results(specs)[2] == []


def test_a_result_holds_for_its_settings_alone(specs, results):
    results(specs)
    first = specs[0]
    other = replace(first, settings=replace(first.settings, mean=(0.1, 0.2, 0.4)))
    with pytest.raises(UsageError, match=r"run-0 was trained with --mean .*0.3\], not .*0.4\]"):
        stored_result(other, read)
    with pytest.raises(UsageError, match="--mean"):  # before any other is run
        results([replace(specs[1], folder=first.folder.with_name("new")), other])
    assert not first.folder.with_name("new").exists()
    # what does not determine the result may change
    same = replace(first.settings, data=("moved",), workers=3, repeats=5, out="x", resume="auto")
    assert stored_result(replace(first, settings=same), read) == Score(0, 1 / 3)


def test_names_that_are_not_utf8_are_the_same_settings_again(specs, results):
    odd = [replace(specs[0], settings=replace(specs[0].settings, weights="w\udce9.pth"))]
    results(odd)
    assert results(odd)[2] == []


@pytest.mark.parametrize("text", ["{", "{}", '{"settings": {}, "result": {"seed": 1}}', "[]"])
def test_a_result_that_cannot_be_read_is_named(specs, results, text):
    results(specs)
    path = specs[1].folder / RESULT_FILE
    assert json.loads(path.read_text())["settings"]["seed"] == 1
    path.write_text(text)
    with pytest.raises(DataError, match=RESULT_FILE) as caught:
        results(specs)
    assert "train this run again" in caught.value.next_step


def _with_others(rank, specs):
    def run_one(spec):
        ran.append(spec.settings.seed)
        return Score(spec.settings.seed, rank)  # a result of rank 0 is stored

    processes, ran = init_distributed("cpu"), []
    how = {"summary": str, "stopped": str, "resume": "", "processes": processes}
    first = run_all(specs[:2], run_one, read, QuietConsole(), **how)
    again = run_all(specs, run_one, read, QuietConsole(), **how)
    return ran, [score.right for score in first], [score.right for score in again]


def test_all_processes_run_what_rank_0_has_not_stored(specs, processes):
    (ran, first, again), (ran_1, first_1, again_1) = processes(2, _with_others, specs)
    assert ran == ran_1 == [0, 1, 2]
    assert (first, again) == ([0, 0], [0, 0, 0])
    assert (first_1, again_1) == ([1, 1], [0, 0, 1])  # the first two are those of rank 0
