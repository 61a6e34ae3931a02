"""The sentence of a comparison says what the interval says."""

import pytest

from unfreeze.reports.comparison import comparison_sentence, comparison_view

NAMES = {"none": "none", "/runs/swav": "swav", "imagenet": "imagenet"}
ABOUT = {"n": 360, "split": "test", "seeds": 3, "same": True, "rates": "several"}


def between(value, low, high, *, start="/runs/swav", than="none"):
    verdict = "better" if low > 0 else "worse" if high < 0 else "open"
    difference = {"start": start, "than": than, "difference": value, "interval": [low, high]}
    return {**difference, "verdict": verdict}


def test_it_says_that_pretraining_paid_and_by_how_much():
    assert comparison_sentence([between(0.062, 0.031, 0.093)], NAMES, ABOUT) == (
        "Pretraining paid: swav is 6.2 points better than training from scratch "
        "(95 %: +3.1 to +9.3). 3 seeds, 360 test images."
    )


def test_it_says_that_it_did_not():
    said = comparison_sentence([between(-0.05, -0.09, -0.01)], NAMES, ABOUT)
    assert "did not pay: swav is 5.0 points worse" in said and "-9.0 to -1.0" in said


def test_it_says_that_it_cannot_tell():
    said = comparison_sentence([between(0.008, -0.012, 0.028)], NAMES, ABOUT)
    assert said.startswith("Can't tell whether swav pays: +0.8 points") and "paid" not in said


def test_it_says_that_a_start_did_not_learn_and_not_that_it_cannot_tell():
    open_, worse = between(-0.006, -0.03, 0.02), between(-0.3, -0.35, -0.25)
    about = ABOUT | {"failed": {"/runs/swav": 3}}
    for apart in (open_, worse):
        said = comparison_sentence([apart], NAMES, about)
        assert said.startswith("swav did not learn: it is no better than guessing in 3 of 3 runs.")
        assert "does not show whether swav pays" in said
        assert "Can't tell" not in said and "did not pay" not in said
    # two starts, of which one learned
    other = between(0.1, 0.05, 0.15, start="imagenet")
    said = comparison_sentence([open_, other], NAMES, about)
    assert "Pretraining paid: imagenet is 10.0 points better" in said


def test_a_start_from_nothing_that_did_not_learn_still_shows_that_another_pays():
    about = ABOUT | {"failed": {"none": 2}}
    said = comparison_sentence([between(0.3, 0.25, 0.35)], NAMES, about)
    assert said.startswith("Pretraining paid: swav is 30.0 points better")
    assert (
        "Training from scratch did not learn: it is no better than guessing in 2 of 3 runs" in said
    )
    said = comparison_sentence([between(0.01, -0.03, 0.05)], NAMES, about)
    assert said.startswith("Training from scratch did not learn") and "Can't tell" not in said


@pytest.mark.parametrize(
    ("about", "caveat"),
    [
        ({"seeds": 1}, "One seed, so the interval leaves out variation"),
        ({"split": "val", "chose": ["epochs"]}, "The epochs were also selected on them, so"),
        (
            {"split": "val", "chose": ["learning rates"]},
            "The learning rates were also selected on them, so",
        ),
        ({"same": False}, "did not train on the same data"),
        ({"rates": "own"}, "--rates tries several"),
    ],
)
def test_doubts_are_said(about, caveat):
    plain = comparison_sentence([between(0.1, 0.05, 0.15)], NAMES, ABOUT)
    frozen = comparison_sentence([between(0.1, 0.05, 0.15)], NAMES, ABOUT | {"frozen": True})
    assert frozen == plain.replace("training from scratch", "a frozen random network") != plain
    assert caveat not in plain
    assert caveat in comparison_sentence([between(0.1, 0.05, 0.15)], NAMES, ABOUT | about)


def test_validation_images_that_chose_nothing_are_not_said_to_have_chosen():
    said = comparison_sentence(
        [between(0.1, 0.05, 0.15)], NAMES, ABOUT | {"split": "val", "chose": []}
    )
    assert "chose" not in said


def test_without_a_start_from_scratch_the_first_is_the_measure():
    apart = between(0.03, 0.01, 0.05, than="imagenet")
    assert "swav is 3.0 points better than imagenet" in comparison_sentence([apart], NAMES, ABOUT)


def test_marks_lie_where_the_numbers_are():
    starts = [
        {
            "weights": w,
            "name": NAMES[w],
            "accuracy": a,
            "interval": [a - 0.1, a + 0.1],
            "deviation": 0.05,
            "accuracies": [a - 0.05, a + 0.05],
        }
        for w, a in (("none", 0.5), ("/runs/swav", 0.7))
    ]
    found = comparison_view(
        {
            "starts": starts,
            "differences": [between(0.2, 0.1, 0.3)],
            "n": 9,
            "split": "test",
            "seeds": [0, 1],
            "same_images": True,
            "rates": "one",
            "runs": [],
        }
    )
    assert found.ends == ("38 %", "82 %") and comparison_view(None) is None
    none, swav = (line.scale for line in found.starts)
    assert 0 < none.low < none.dots[0] < none.middle < none.dots[1] < none.high
    assert none.high == pytest.approx(swav.low) and swav.high < 300 and none.zero is None
    (apart,) = (line.scale for line in found.differences)
    assert 0 < apart.zero < apart.low < apart.middle < apart.high < 300
    assert [line.aside for line in found.differences] == ["better"]
