"""What a run waited for: computed from its records, with advice that fits."""

from dataclasses import replace

import pytest

from unfreeze.reports.bottleneck import ThroughputSettings, bottleneck, data_and_step_seconds

HERE = ThroughputSettings("cpu", "bf16", workers=0, processors=4, store="memory", views="host")


def record(step, data, rest):
    return {"step": step, "split": "train", "seconds_data": data, "seconds_step": rest}


def test_the_slower_part_is_named_with_its_share():
    data = [record(1, 9.0, 9.0), record(2, 0.41, 0.59), record(3, 0.41, 0.59)]
    assert bottleneck(data, HERE).startswith("Waiting for data took 41 % of the time: ")
    network = [record(1, 9.0, 9.0), record(2, 0.03, 0.97)]
    assert bottleneck(network, HERE).startswith("The network took 97 % of the time: ")
    between = [record(1, 0.1, 0.9)]
    assert "90 % of the time, waiting for data 10 %" in bottleneck(between, HERE)


def test_records_count_by_the_steps_they_are_the_mean_of():
    records = [record(1, 1.0, 1.0), record(2, 1.0, 0.0), record(52, 0.0, 1.0)]
    assert data_and_step_seconds(records) == (1.0, 50.0)


def test_the_first_record_counts_only_where_it_is_the_only_one():
    assert data_and_step_seconds([record(1, 2.0, 1.0)]) == (2.0, 1.0)
    assert data_and_step_seconds([record(1, 2.0, 1.0), record(2, 0.0, 1.0)]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "records", [[], [{"step": 1, "split": "val"}], [{"step": 1, "split": "train", "loss": 2.0}]]
)
def test_nothing_timed_nothing_said(records):
    assert data_and_step_seconds(records) is None and bottleneck(records, HERE) == ""


def test_other_records_between_count_for_nothing():
    looks = {"step": 2, "split": "train-look", "seconds_data": 99.0, "seconds_step": 1.0}
    assert data_and_step_seconds([record(2, 1.0, 3.0), looks]) == (2.0, 6.0)


def test_the_advice_is_something_that_is_not_done_yet():
    records = [record(1, 0.5, 0.5)]
    said = bottleneck(records, HERE)
    assert "--workers 1 would help" in said and "--store" not in said
    assert "--workers 2" in bottleneck(records, replace(HERE, workers=1))
    assert "--store memory or disk" in bottleneck(records, replace(HERE, store="none"))
    full = bottleneck(records, replace(HERE, workers=3))
    assert "--workers" not in full and "fewer or smaller crops" in full
    assert "--workers" not in bottleneck(records, replace(HERE, views="device"))
    gpu = replace(HERE, device="cuda", workers=3)
    assert "--workers 4" in bottleneck(records, gpu)
    slow = [record(1, 0.0, 1.0)]
    assert "a GPU" in bottleneck(slow, HERE) and "a GPU" not in bottleneck(slow, gpu)
    assert "--precision auto" in bottleneck(slow, replace(gpu, precision="fp32"))


def test_without_circumstances_there_is_no_advice():
    assert bottleneck([record(1, 0.0, 1.0)], None) == "The network took 100 % of the time."
    assert ThroughputSettings.of({"device": "cpu"}) is None
    facts = {**vars(HERE), "device": "cuda:1", "images": 3}
    assert ThroughputSettings.of(facts) == replace(HERE, device="cuda")
