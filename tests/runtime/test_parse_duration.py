"""Durations as people say them."""

import pytest

from unfreeze.runtime.time_limit import rough_duration


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "less than a minute"),
        (49, "less than a minute"),
        (70, "about a minute"),
        (180, "about 3 minutes"),
        (99 * 60, "about 99 minutes"),
        (99.7 * 60, "about 1.7 hours"),
        (2.5 * 3600, "about 2.5 hours"),
        (9.96 * 3600, "about 10 hours"),
        (68 * 3600, "about 68 hours"),
        (99.7 * 3600, "about 4 days"),
    ],
)
def test_people_count_in_minutes_hours_and_days(seconds, words):
    assert rough_duration(seconds) == words
