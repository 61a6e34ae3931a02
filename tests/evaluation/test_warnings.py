"""Warnings of several steps or runs, brought together."""

from unfreeze.evaluation.warnings import RunWarning, merge_latest, merge_over_runs


def test_of_one_code_the_latest_stand():
    a, b, c = RunWarning("x", "early"), RunWarning("y", "early"), RunWarning("x", "late")
    assert merge_latest([a, b], [c]) == [b, c]
    assert merge_latest([a, b], []) == [a, b]
    assert merge_latest() == []


def test_runs_say_whose_a_warning_is_and_what_is_of_the_data_once():
    lost, leak = RunWarning("one_class", "All."), RunWarning("leakage", "Some.")
    found = merge_over_runs({"none": [[leak], [leak]], "swav": [[lost, leak], [lost, leak]]})
    assert [(one.code, one.message) for one in found] == [
        ("leakage", "Some."),
        ("one_class", "swav, 2 of 2 runs: All."),
    ]
    assert merge_over_runs({"a": [[lost]]})[0].message == "a: All."
    assert merge_over_runs({"a": [[]]}) == []
