"""What a few images say of a dataset, before any plan."""

import numpy as np
import pytest

from unfreeze.data.images.decode import decode
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.sample import sample_dataset
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError

CLASSES = {"negative": 100, "positive": 1_600}


def deep(made, kind, *, colour=False):
    """16-bit images of two classes that differ in brightness alone, beside plain ones."""
    draw, members = np.random.default_rng(0), {}
    for name, mean in CLASSES.items():
        for number in range(6):
            shape = (16, 20, 3) if colour else (16, 20)
            values = draw.normal(mean, mean / 5, shape).clip(0, 4 * mean).astype(np.uint16)
            members[f"{name}/{number}.{kind}"] = encoded(values, kind)
    return made.zip(members)


def encoded(values, kind):
    import cv2

    return cv2.imencode(f".{kind}", values)[1].tobytes()


def indexed(path):
    index = build_index(open_source(str(path)))
    return index, np.arange(len(index))


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_classes_that_differ_in_brightness_alone_stay_apart(made, kind, colour):
    index, everything = indexed(deep(made, kind, colour=colour))
    rule, reason = sample_dataset(index, everything).intensity("auto")
    assert (
        rule == "0:4095"
        and "one range for all images (12 bits): 12 sampled high-bit-depth images" in reason
    )
    mean = {
        how: [decode(index.source.read(row), how).mean() for row in (0, 11)]
        for how in (rule, "image")
    }
    assert mean[rule][1] > 10 * mean[rule][0]  # as it is in the files
    assert mean["image"][1] < 2 * mean["image"][0]  # each by itself: nearly the same


def test_what_is_asked_for_or_stored_stays_and_what_it_cuts_off_is_counted(made):
    index, everything = indexed(deep(made, "png"))
    found = sample_dataset(index, everything)
    rule, reason = found.intensity("0:1023")
    assert rule == "0:1023" and "6 of 12 sampled high-bit-depth images exceed it" in reason
    assert found.intensity("percentile")[0] == "percentile"
    assert found.intensity("auto@0")[0] == "0:4095@0"


def test_of_plain_images_nothing_is_said(made):
    index, everything = indexed(made.zip(made.members(["a/1.png", "b/2.png"])))
    found = sample_dataset(index, everything)
    assert found.intensity("auto") == ("auto", None)
    assert (found.side, found.heights.tolist(), found.widths.tolist()) == (12, [12, 12], [16, 16])


def test_where_no_header_can_be_read(made):
    index, everything = indexed(made.zip({"a/1.png": b"x", "b/2.png": b"y"}))
    with pytest.raises(DataError, match="None of the sampled files"):
        sample_dataset(index, everything)
