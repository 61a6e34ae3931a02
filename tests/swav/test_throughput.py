"""The choice among ways of computing a step: a pure function of measured seconds."""

from dataclasses import replace

import pytest

from unfreeze.swav.throughput import (
    StepConfig,
    StepTime,
    TuningResult,
    TuningRound,
    TuningScope,
    candidates_for,
    choose_config,
)

USUAL = StepConfig("bf16", "channels_last", 2, 0)
CPU = TuningScope("cpu", ("bf16", "fp32"), 2)


def spent(milliseconds, data=0.0, whole=True):
    return StepTime(data / 1000, (milliseconds - data) / 1000, whole)


def against(knob, first, value, second, *, usual=USUAL, whole=True):
    other = replace(usual, **{knob: value})
    return TuningRound(knob, 8, {usual: spent(first), other: spent(second, whole=whole)})


@pytest.mark.parametrize(
    "knob, value", [("threads", 1), ("precision", "fp32"), ("layout", "contiguous"), ("workers", 1)]
)
def test_the_faster_way_is_taken_only_if_it_is_clearly_faster(knob, value):
    kept = choose_config([against(knob, 100, value, 91)], USUAL, CPU)
    assert kept.way == USUAL
    moved = choose_config([against(knob, 100, value, 80)], USUAL, CPU)
    assert moved.way == replace(USUAL, **{knob: value})
    assert moved.reasons[knob].startswith(f"{value}: 80 ms")
    assert f"{getattr(USUAL, knob)} 100 ms" in moved.reasons[knob]


def test_a_way_that_was_cut_off_loses_to_a_whole_one_and_says_over():
    cut = TuningRound(
        "threads", 2, {USUAL: spent(1200, whole=False), replace(USUAL, threads=1): spent(9)}
    )
    found = choose_config([cut], USUAL, CPU)
    assert found.way.threads == 1 and "2 over 1.2e+03 ms" in found.reasons["threads"]


def test_rounds_build_on_one_another():
    first = against("threads", 100, 1, 50)
    way = choose_config([first], USUAL, CPU).way
    second = against("precision", 50, "fp32", 30, usual=way)
    both = choose_config([first, second], USUAL, CPU)
    assert both.way == StepConfig("fp32", "channels_last", 1, 0) and len(both.rounds) == 2


def test_what_was_given_is_never_tried():
    given = replace(CPU, given={"threads": "set by OMP_NUM_THREADS", "precision": "asked for"})
    assert (
        candidates_for("threads", USUAL, given) == [] == candidates_for("precision", USUAL, given)
    )
    found = choose_config([], USUAL, given)
    assert found.way == USUAL and found.reasons["threads"] == "2: set by OMP_NUM_THREADS"
    # a worker takes a thread's place only where threads are free
    assert {way.threads for way in candidates_for("workers", USUAL, CPU)} == {2, 1}
    assert {way.threads for way in candidates_for("workers", USUAL, given)} == {2}


def test_what_is_tried_depends_on_the_machine():
    many = TuningScope("cpu", ("fp32",), 8)
    way = StepConfig("fp32", "channels_last", 8, 0)
    assert [w.threads for w in candidates_for("threads", way, many)] == [8, 4, 2, 1]
    assert [(w.workers, w.threads) for w in candidates_for("workers", way, many)] == [
        (0, 8),
        (1, 7),
        (4, 4),
    ]
    assert candidates_for("precision", way, many) == []
    alone = TuningScope("cpu", ("fp32",), 1)
    assert not any(
        candidates_for(k, replace(way, threads=1), alone) for k in ("threads", "workers")
    )
    phone = TuningScope("mps", ("fp32",), 8)
    assert not any(
        candidates_for(k, way, phone) for k in ("threads", "precision", "workers", "layout")
    )


def test_a_gpu_gets_as_many_workers_as_its_views_need():
    gpu = TuningScope("cuda", ("bf16", "fp32"), 8)
    usual = StepConfig("bf16", "channels_last", 8, 8)
    (alone,) = candidates_for("workers", usual, gpu)
    assert alone.workers == 0 and candidates_for("threads", usual, gpu) == []
    for data, workers in ((1, 1), (180, 3), (5000, 8)):
        found = choose_config(
            [TuningRound("workers", 64, {alone: spent(100 + data, data)})], usual, gpu
        )
        assert found.way.workers == workers


def test_nothing_is_tried_with_workers_beside_a_gpu_and_the_usual_ones_stay():
    gpu = TuningScope("cuda", ("fp32", "fp16"), 8)
    usual = StepConfig("fp32", "channels_last", 8, 8)
    ways = candidates_for("precision", usual, gpu)
    assert [(w.precision, w.workers) for w in ways] == [("fp32", 0), ("fp16", 0)]
    found = choose_config(
        [TuningRound("precision", 8, {ways[0]: spent(90), ways[1]: spent(40)})], usual, gpu
    )
    assert found.way == StepConfig("fp16", "channels_last", 8, 8)


def test_a_way_that_does_not_fit_is_left():
    inf = StepTime(0.0, float("inf"), whole=False)
    tried = TuningRound("precision", 64, {USUAL: spent(50), replace(USUAL, precision="fp32"): inf})
    found = choose_config([tried], USUAL, CPU)
    assert found.way == USUAL and "fp32 out of memory" in found.reasons["precision"]


def test_views_that_cost_nothing_need_no_workers():
    found = choose_config([TuningRound("workers", 8, {USUAL: spent(100, data=4)})], USUAL, CPU)
    assert found.way == USUAL and "4 %" in found.reasons["workers"]


def test_every_knob_has_a_reason_and_missing_rounds_say_why():
    found = choose_config([], USUAL, CPU, "a run of 9 steps is too short to benefit")
    assert set(found.reasons) == {"threads", "precision", "layout", "workers", "compile"}
    assert found.reasons["layout"] == (
        "channels_last: not measured, a run of 9 steps is too short to benefit"
    )


def test_the_record_names_the_way_and_every_figure():
    record = replace(choose_config([against("threads", 100, 1, 50)], USUAL, CPU), seconds=1.234)
    assert isinstance(record, TuningResult)
    kept = record.record("cpu")
    assert (kept["threads"], kept["precision"], kept["device"]) == (1, "bf16", "cpu")
    assert kept["probe_seconds"] == 1.23 and len(kept["steps"]) == 2
    assert kept["steps"]["bf16, channels_last, 1 threads, 0 workers, 8 images"] == "50 ms"
