"""Warnings of several steps or runs, brought together."""

from unfreeze.evaluation.warnings import RunWarning, latest, over_runs


def test_of_one_code_the_latest_stand():
    a, b, c = RunWarning("x", "early"), RunWarning("y", "early"), RunWarning("x", "late")
    assert latest([a, b], [c]) == [b, c]
    assert latest([a, b], []) == [a, b]
    assert latest() == []


def test_runs_say_whose_a_warning_is_and_what_is_of_the_data_once():
    lost, leak = RunWarning("one_class", "All."), RunWarning("leakage", "Some.")
    found = over_runs({"none": [[leak], [leak]], "swav": [[lost, leak], [lost, leak]]})
    assert [(one.code, one.message) for one in found] == [
        ("leakage", "Some."),
        ("one_class", "swav, 2 of 2 runs: All."),
    ]
    assert over_runs({"a": [[lost]]})[0].message == "a: All."
    assert over_runs({"a": [[]]}) == []
