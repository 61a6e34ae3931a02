"""Images that are the same, beside comparing each with each."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from unfreeze.data.images.decode import decode, decode_reduced
from unfreeze.data.validate import duplicates
from unfreeze.data.validate.duplicates import (
    SIGNATURE,
    duplicates_across_splits,
    duplicates_of,
    near_duplicates_across_splits,
    signature,
)


def each_with_each(looks, thumbs):
    """Groups by comparing all pairs."""
    rows = thumbs.astype(np.float64) - thumbs.mean(axis=1, keepdims=True)
    parents = list(range(len(looks)))

    def root(place):
        while parents[place] != place:
            place = parents[place]
        return place

    for one, two in itertools.combinations(range(len(looks)), 2):
        alike = np.corrcoef(rows[one], rows[two])[0, 1] >= duplicates.MIN_CORRELATION
        if alike and int(looks[one] ^ looks[two]).bit_count() <= duplicates.MAX_HAMMING:
            first, second = sorted((root(one), root(two)))
            parents[second] = first
    groups = {}
    for place in range(len(looks)):
        groups.setdefault(root(place), []).append(place)
    return sorted(group for group in groups.values() if len(group) > 1)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_find_what_comparing_all_pairs_finds(seed, monkeypatch):
    monkeypatch.setattr(duplicates, "_BATCH", 7)
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
    found = duplicates.near_groups(looks, thumbs)
    assert found == each_with_each(looks, thumbs) and found


def test_the_same_bits_of_another_image_are_no_twin():
    thumbs = np.random.default_rng(0).integers(0, 256, (2, 256), np.uint8)
    assert duplicates.near_groups(np.zeros(2, np.uint64), thumbs) == []


def test_the_same_bytes():
    digests = np.array([b"a" * 16, b"b" * 16, b"a" * 16, b"c" * 16, b"b" * 16], "V16")
    assert duplicates.exact_groups(digests) == [[0, 2], [1, 4]]
    assert (
        duplicates.exact_groups(np.zeros(0, "V16"))
        == []
        == duplicates.near_groups(np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8))
    )


def test_frames_of_a_camera_that_stands_still_are_brought_together_once(monkeypatch):
    draw = np.random.default_rng(0)
    frame = draw.integers(8, 248, 256)
    thumbs = (frame + draw.integers(-3, 4, (500, 256))).astype(np.uint8)
    unions, union = [], duplicates._union
    monkeypatch.setattr(duplicates, "_union", lambda *given: unions.append(given) or union(*given))
    assert duplicates.near_groups(np.full(500, 2**40 + 7, np.uint64), thumbs) == [list(range(500))]
    assert len(unions) < 1_000  # of 125,000 pairs that look alike


def table_of(looks, thumbs, flat=()):
    table = np.zeros(len(looks), SIGNATURE)
    table["known"], table["hash"], table["thumb"] = True, looks, thumbs
    table["flat"][list(flat)] = True
    return table


def some_alike(seed, originals=15, copies=45):
    """Random images and near-copies of them, some too far away: (hashes, thumbnails)."""
    draw = np.random.default_rng(seed)
    looks = draw.integers(0, 2**63, originals, np.uint64)
    thumbs = draw.integers(0, 256, (originals, 256), np.uint8)
    of = draw.integers(0, originals, copies)
    flips = [
        sum(1 << int(bit) for bit in draw.choice(64, draw.integers(0, 10), replace=False))
        for _ in of
    ]
    noise = draw.integers(-12, 13, (copies, 256)) * draw.integers(1, 4, (copies, 1))
    near = np.clip(thumbs[of].astype(int) + noise, 0, 255).astype(np.uint8)
    looks = np.r_[looks, looks[of] ^ np.array(flips, np.uint64)]
    return looks, np.r_[thumbs, near]


@pytest.mark.parametrize("seed", range(4))
def test_across_is_each_with_each_of_a_lower_side(seed):
    looks, thumbs = some_alike(seed)
    draw = np.random.default_rng(seed)
    sides, keys = draw.integers(0, 4, len(looks)), draw.integers(0, 40, len(looks))
    rows = thumbs.astype(float) - thumbs.mean(axis=1, keepdims=True)

    def same(a, b):
        near = int(looks[a] ^ looks[b]).bit_count() <= duplicates.MAX_HAMMING
        return keys[a] == keys[b] or (near and np.corrcoef(rows[a], rows[b])[0, 1] >= 0.985)

    found = duplicates_across_splits(sides, keys, table_of(looks, thumbs))
    lower = [
        {a for a in range(len(looks)) if 0 < sides[a] < sides[b] and same(a, b)}
        for b in range(len(looks))
    ]
    assert [one >= 0 for one in found] == [bool(some) for some in lower]
    assert all(one < 0 or one in some for one, some in zip(found.tolist(), lower, strict=True))
    assert any(lower) and not all(lower)


@pytest.mark.parametrize("seed", range(4))
def test_the_duplicates_of_one_image_are_its_pairs(seed):
    looks, thumbs = some_alike(seed)
    keys = np.random.default_rng(seed).integers(0, 40, len(looks))
    table = table_of(looks, thumbs, flat=[3, 20])
    table["known"][5] = False
    near = {frozenset(pair) for pair in itertools.combinations(range(len(looks)), 2)}
    rows = thumbs.astype(float) - thumbs.mean(axis=1, keepdims=True)

    def same(a, b):
        alike = int(looks[a] ^ looks[b]).bit_count() <= duplicates.MAX_HAMMING
        alike = alike and np.corrcoef(rows[a], rows[b])[0, 1] >= duplicates.MIN_CORRELATION
        return keys[a] == keys[b] or (alike and not {a, b} & {3, 5, 20})

    near = [pair for pair in near if same(*pair)]
    for image in range(len(looks)):
        others = {image}.union(*(pair for pair in near if image in pair))
        found = duplicates_of(image, keys, table)
        assert set(np.flatnonzero(found).tolist()) == others
    assert len(near) > 10


def test_a_chain_of_pairs_is_no_pair():
    """Frames of a slow film: each like the next, the last unlike the first."""
    draw = np.random.default_rng(0)
    first, last = draw.normal(0, 50, 256), draw.normal(0, 50, 256)
    steps = [128 + first * np.cos(a) + last * np.sin(a) for a in (0, 0.15, 0.3)]
    table = table_of(np.zeros(3, np.uint64), np.clip(steps, 0, 255).astype(np.uint8))
    assert duplicates.near_groups(table["hash"], table["thumb"]) == [[0, 1, 2]]
    assert near_duplicates_across_splits(np.array([1, 2, 2]), table).tolist() == [-1, 0, -1]
    assert near_duplicates_across_splits(np.array([1, 1, 2]), table).tolist() == [-1, -1, 1]


def test_flat_images_are_the_same_only_by_their_bytes():
    table = table_of(np.zeros(4, np.uint64), np.zeros((4, 256), np.uint8), flat=range(4))
    assert duplicates_across_splits(
        np.array([1, 1, 2, 2]), np.array([7, 8, 7, 9]), table
    ).tolist() == [-1, -1, 0, -1]


def test_what_was_not_looked_at_is_like_nothing():
    looks, thumbs = some_alike(0, 1, 0)
    table = table_of(np.repeat(looks, 2), np.repeat(thumbs, 2, axis=0))
    assert near_duplicates_across_splits(np.array([1, 2]), table).tolist() == [-1, 0]
    table["known"][0] = False
    assert near_duplicates_across_splits(np.array([1, 2]), table).tolist() == [-1, -1]
    assert near_duplicates_across_splits(np.zeros(0, int), table[:0]).tolist() == []


def scene(side, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [40, 384, 1400])
def test_a_signature_is_the_same_whole_and_reduced(side, kind):
    """What `scan` and a check without a store make of reduced images, others make of whole ones."""
    data = saved(scene(side), kind)
    grey, size = decode_reduced(data, "auto", 128)
    assert size == (side, side * 4 // 3)
    one, two = signature(grey), signature(decode(data))
    assert (one.hash ^ two.hash).bit_count() <= 2
    assert np.corrcoef(one.thumb, two.thumb)[0, 1] > 0.999


def test_a_smaller_save_of_an_image_is_the_same_and_another_image_is_not():
    original, other = scene(300), scene(300, seed=1)
    small = decode(saved(original.resize((120, 90)), "JPEG", quality=60))
    table = np.zeros(3, SIGNATURE)
    for place, one in enumerate((np.array(original), small, np.array(other))):
        signature(one).into(table, place)
    assert duplicates_across_splits(np.array([1, 2, 2]), np.arange(3), table).tolist() == [
        -1,
        0,
        -1,
    ]
