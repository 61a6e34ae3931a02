"""Pictures that are the same, beside comparing each with each."""

import itertools

import numpy as np
import pytest

from unfreeze.data import twins


def each_with_each(looks, thumbs):
    """Groups by comparing all pairs."""
    rows = thumbs.astype(np.float64) - thumbs.mean(axis=1, keepdims=True)
    parents = list(range(len(looks)))

    def root(place):
        while parents[place] != place:
            place = parents[place]
        return place

    for one, two in itertools.combinations(range(len(looks)), 2):
        alike = np.corrcoef(rows[one], rows[two])[0, 1] >= twins.ALIKE
        if alike and int(looks[one] ^ looks[two]).bit_count() <= twins.FAR:
            first, second = sorted((root(one), root(two)))
            parents[second] = first
    groups = {}
    for place in range(len(looks)):
        groups.setdefault(root(place), []).append(place)
    return sorted(group for group in groups.values() if len(group) > 1)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_find_what_comparing_all_pairs_finds(seed, monkeypatch):
    monkeypatch.setattr(twins, "_BLOCK", 7)
    draw = np.random.default_rng(seed)
    looks = draw.integers(0, 2**63, 20, np.uint64)
    thumbs = draw.integers(0, 256, (20, 256), np.uint8)
    copies, originals = [], draw.integers(0, 20, 60)
    for original in originals:
        flipped = draw.choice(64, draw.integers(0, 10), replace=False)
        copies.append(
            looks[original] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64))
            if len(flipped)
            else looks[original]
        )
    noise = draw.integers(-12, 13, (60, 256)) * draw.integers(1, 4, (60, 1))
    near = np.clip(thumbs[originals].astype(int) + noise, 0, 255).astype(np.uint8)
    looks, thumbs = np.r_[looks, np.array(copies, np.uint64)], np.r_[thumbs, near]
    found = twins.near(looks, thumbs)
    assert found == each_with_each(looks, thumbs) and found


def test_the_same_bits_of_another_picture_are_no_twin():
    thumbs = np.random.default_rng(0).integers(0, 256, (2, 256), np.uint8)
    assert twins.near(np.zeros(2, np.uint64), thumbs) == []


def test_the_same_bytes():
    digests = np.array([b"a" * 16, b"b" * 16, b"a" * 16, b"c" * 16, b"b" * 16], "V16")
    assert twins.exact(digests) == [[0, 2], [1, 4]]
    assert (
        twins.exact(np.zeros(0, "V16"))
        == []
        == twins.near(np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8))
    )


def test_frames_of_a_camera_that_stands_still_are_brought_together_once(monkeypatch):
    draw = np.random.default_rng(0)
    frame = draw.integers(8, 248, 256)
    thumbs = (frame + draw.integers(-3, 4, (500, 256))).astype(np.uint8)
    unions, union = [], twins._union
    monkeypatch.setattr(twins, "_union", lambda *given: unions.append(given) or union(*given))
    assert twins.near(np.full(500, 2**40 + 7, np.uint64), thumbs) == [list(range(500))]
    assert len(unions) < 1_000  # of 125,000 pairs that look alike
