import pytest

from unfreeze.swav.evaluation_schedule import (
    EVALUATED_MOST,
    FEWEST,
    SHARE,
    TIMES,
    VIEWS,
    EvaluationSchedule,
)


@pytest.mark.parametrize("images", [20, 300, 1437, 10_000, 1_281_167])
@pytest.mark.parametrize("epochs", [1, 5, 30, 100, 800])
@pytest.mark.parametrize("side", [16, 32, 224])
def test_about_ten_looks_for_a_twentieth_of_the_work(images, epochs, side):
    looks = EvaluationSchedule(images, epochs, 2 * side**2, side)
    assert min(images, FEWEST) <= looks.sample <= min(images, EVALUATED_MOST)
    during = (epochs - 1) // looks.every  # the start and the last are not up for choice
    assert during <= TIMES
    assert during * VIEWS * looks.sample * side**2 <= SHARE * 3 * epochs * images * 2 * side**2
    if images >= 10_000 and epochs >= 30:
        assert during >= 5 and looks.why == "ten times per run"


def test_larger_runs_are_looked_at_on_more_images():
    sizes = [EvaluationSchedule(n, 30, 2 * 32**2, 32).sample for n in (100, 1437, 10_000, 100_000)]
    assert sizes == sorted(sizes) and sizes[0] == 100 and sizes[-1] == EVALUATED_MOST
