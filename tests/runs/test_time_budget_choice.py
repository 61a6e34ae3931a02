"""What fits a time: the first option with enough epochs, with made-up speeds."""

import pytest

from unfreeze.runs.time_budget import SPARE, BudgetOption, choose_option


def option(name, seconds, least=10, most=30, asked=None):
    def measured(enough):
        if asked is not None:
            asked.append(name)
        return seconds

    return BudgetOption({"arch": name}, least, most, measured)


def test_the_first_with_enough_epochs_is_taken_and_nothing_behind_it_is_measured():
    asked = []
    options = [option(n, s, asked=asked) for n, s in (("large", 100), ("mid", 10), ("small", 1))]
    found = choose_option(options, 200)
    assert found.values == {"arch": "mid"} and asked == ["large", "mid"]
    assert found.epochs == int(SPARE * 200 / 10) and found.seconds == 10 * found.epochs


def test_never_more_epochs_than_are_wanted():
    found = choose_option([option("large", 1)], 3600)
    assert found.epochs == 30 and found.seconds == 30


def test_where_none_has_enough_most_epochs_count():
    found = choose_option([option("large", 60), option("small", 20), option("odd", 30)], 100)
    assert found.values == {"arch": "small"} and found.epochs == int(SPARE * 100 / 20)


@pytest.mark.parametrize("seconds", [1000, None])
def test_nothing_fits(seconds):
    assert choose_option([option("large", seconds)], 100) is None


def test_what_cannot_be_computed_is_passed_over():
    assert choose_option([option("broken", None), option("small", 1)], 100).values == {
        "arch": "small"
    }


def test_a_lower_bound_decides_nothing():
    """At the machine's peak an epoch takes 1 s, in truth 20: too few fit, and those are counted."""

    def seconds(enough):
        return 1.0 if enough < 2 else 20.0

    slow = BudgetOption({"arch": "slow"}, 100, 200, seconds)
    assert choose_option([slow], 100).epochs == int(SPARE * 100 / 20)
    # another that is measured to have more is taken
    assert choose_option([slow, option("small", 5, least=50)], 100).values == {"arch": "small"}
