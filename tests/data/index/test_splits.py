import csv
import io
import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from unfreeze.data.index.splits import (
    SplitRow,
    merge_groups,
    read_split_csv,
    stratified_split,
    subset,
    write_split_csv,
)
from unfreeze.errors import DataError
from unfreeze.text import as_text

FIELD = some.text(some.sampled_from('ab ,"\r\n;ü'), max_size=4)
COUNTS = some.lists(some.integers(1, 40), min_size=1, max_size=6)
SEEDS = some.integers(0, 2**31)


def labels_of(counts) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(0).permutation(labels)


@given(COUNTS, SEEDS, some.integers(1, 20), some.integers(0, 20))
def test_labels_per_class_nest(counts, seed, fewer, more):
    labels = labels_of(counts)
    everything = np.arange(len(labels))
    small = subset(labels, everything, per_class=fewer, seed=seed)
    large = subset(labels, everything, per_class=fewer + more, seed=seed)
    assert np.bincount(labels[small]).tolist() == [min(fewer, count) for count in counts]
    assert set(small) <= set(large)
    assert (np.diff(small) > 0).all()


@given(COUNTS, SEEDS, some.floats(0, 1), some.floats(0, 1))
def test_fractions_nest_and_keep_every_class(counts, seed, one, other):
    labels = labels_of(counts)
    parts = [
        subset(labels, np.arange(len(labels)), fraction=f, seed=seed) for f in sorted((one, other))
    ]
    assert set(parts[0]) <= set(parts[1])
    for part, fraction in zip(parts, sorted((one, other)), strict=True):
        assert len(part) == max(round(fraction * len(labels)), len(counts))
        held = np.bincount(labels[part], minlength=len(counts))
        assert (held > 0).all()
        # no class is further than one image and a half from its share, its first aside
        share = np.array(counts) * (len(part) / len(labels))
        assert (held <= np.maximum(share + 1.5, 1)).all()


@given(COUNTS, SEEDS, some.integers(1, 300))
def test_limits_nest(counts, seed, limit):
    labels = labels_of(counts)
    everything = np.arange(len(labels))
    small = subset(labels, everything, limit=limit, seed=seed)
    assert len(small) == min(limit, len(labels))
    assert set(small) <= set(subset(labels, everything, limit=limit + 7, seed=seed))


def test_subsets_stay_in_their_positions_and_follow_the_seed():
    labels = labels_of([50, 50])
    positions = np.arange(0, 100, 2)
    found = subset(labels, positions, per_class=5, seed=0)
    assert set(found) <= set(positions)
    assert found.tolist() == subset(labels, positions[::-1], per_class=5, seed=0).tolist()
    assert found.tolist() != subset(labels, positions, per_class=5, seed=1).tolist()


def test_unlabelled_images_can_be_limited_but_not_counted_by_class():
    labels = np.full(30, -1, np.int32)
    assert len(subset(labels, np.arange(30), limit=7, seed=0)) == 7
    with pytest.raises(DataError, match="needs labels, but some images have none"):
        subset(labels, np.arange(30), per_class=2, seed=0)
    assert subset(labels, [], per_class=2, limit=3, fraction=0.5, seed=0).tolist() == []


def test_the_choice_never_changes():
    # runs of years ago must be repeatable: these numbers may not move
    labels = labels_of([10, 20])
    assert subset(labels, np.arange(30), per_class=2, seed=0).tolist() == [7, 10, 12, 15]
    _, held = stratified_split(labels, np.arange(30), fraction=0.2, seed=0)
    assert held.tolist() == [0, 4, 14, 23, 24, 27]


@given(some.lists(some.integers(5, 60), min_size=1, max_size=6), SEEDS, some.floats(0, 1))
def test_held_out_by_largest_remainder(counts, seed, fraction):
    labels = labels_of(counts)
    train, val = stratified_split(labels, np.arange(len(labels)), fraction=fraction, seed=seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    kept = np.bincount(labels[train], minlength=len(counts))
    assert (kept >= 1).all()
    quotas = np.array(counts) * (round(fraction * len(labels)) / len(labels))
    held = np.array(counts) - kept
    assert (np.abs(held - quotas) <= 1).all()
    if (quotas <= np.array(counts) - 1).all():
        assert len(val) == round(fraction * len(labels))


def test_below_five_a_class_nothing_is_held_out():
    labels = labels_of([100, 4])
    train, val = stratified_split(labels, np.arange(104), fraction=0.2, seed=0)
    assert (len(train), len(val)) == (104, 0)
    train, val = stratified_split(labels, [], fraction=0.2, seed=0)
    assert (len(train), len(val)) == (0, 0)


@given(some.lists(some.integers(5, 60), min_size=1, max_size=5), SEEDS, some.integers(1, 12))
@example([27, 30, 32, 27], 0, 11)  # where whole classes would overshoot
def test_groups_stay_on_one_side(counts, seed, size):
    labels = labels_of(counts)
    groups = (np.random.default_rng(seed).permutation(len(labels)) // size).tolist()
    train, val = stratified_split(
        labels, np.arange(len(labels)), fraction=0.2, seed=seed, groups=groups
    )
    assert not {groups[p] for p in train} & {groups[p] for p in val}
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert (np.bincount(labels[train], minlength=len(counts)) >= 1).all()
    assert len(val) <= 0.2 * len(labels) + 0.5 + size / 2


def test_groups_of_one_class_come_near_the_share():
    labels = labels_of([300, 300])
    groups = [f"{label}-{n // 3}" for n, label in enumerate(labels)]
    _, val = stratified_split(labels, np.arange(600), fraction=0.2, seed=3, groups=groups)
    assert np.abs(np.bincount(labels[val]) - 60).max() <= 2


def test_one_group_for_all_holds_nothing_out():
    labels = labels_of([30, 30])
    train, val = stratified_split(labels, np.arange(60), fraction=0.2, seed=0, groups=["p"] * 60)
    assert (len(train), len(val)) == (60, 0)


def test_split_csv_comes_back(made):
    path = made.root / "split.csv"
    rows = [
        SplitRow('a,"b".png', "cat", "train"),
        SplitRow("line\nbreak.png", "", "val"),
        SplitRow(as_text(os.fsdecode(b"\xff.png")), "dog", "test"),
    ]
    write_split_csv(path, rows)
    assert path.read_text(errors="replace").startswith("path,label,split\n")
    assert read_split_csv(path) == rows


@pytest.mark.parametrize("text", ["", "a,b,c\n", "path,label,split\nx,y\n"])
def test_something_else_is_no_split_csv(made, text):
    path = made.root / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="not a split file"):
        read_split_csv(path)


def test_a_split_csv_that_is_not_there(made):
    with pytest.raises(DataError, match="cannot be read"):
        read_split_csv(made.root / "absent.csv")


@given(some.lists(some.tuples(FIELD, FIELD, FIELD), max_size=5))
def test_lines_are_those_of_the_csv_module(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("splits") / "split.csv"
    write_split_csv(path, iter(rows))
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [list(row) for row in (SplitRow._fields, *rows)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([SplitRow._fields, *rows])
    if "\r" not in text.getvalue():  # which the module's own reader would not understand
        assert path.read_bytes() == text.getvalue().encode()


def test_lines_of_many_images_are_all_there(tmp_path):
    rows = [
        SplitRow(f"{n:05}.png" if n != 9_000 else "a,b.png", "x", "train") for n in range(10_000)
    ]
    write_split_csv(tmp_path / "split.csv", rows)
    assert read_split_csv(tmp_path / "split.csv") == rows


@given(COUNTS, SEEDS, some.lists(some.lists(some.integers(0, 200), max_size=5), max_size=8))
def test_what_belongs_together_is_on_one_side_and_train_keeps_every_class(counts, seed, asked):
    labels = labels_of(counts)
    everything = np.arange(len(labels))
    taken, groups = set[int](), []
    for some_ in asked:  # groups have nothing in common
        group = sorted({p % len(labels) for p in some_} - taken)
        taken |= set(group)
        groups += [group] if len(group) > 1 else []
    train, val = stratified_split(labels, everything, fraction=0.3, seed=seed, together=groups)
    assert sorted([*train, *val]) == everything.tolist()
    assert all(set(group) <= set(val) or not set(group) & set(val) for group in groups)
    assert (np.bincount(labels[train], minlength=len(counts)) > 0).all()
    if not groups:
        plain = stratified_split(labels, everything, fraction=0.3, seed=seed)
        assert np.array_equal(val, plain[1])


def test_pairs_are_held_out_as_often_as_others():
    """Groups that were held out where any of them would be would fill the validation set."""
    labels = np.zeros(400, np.int32)
    pairs = [[place, place + 1] for place in range(0, 200, 2)]
    shares = [
        (
            stratified_split(labels, np.arange(400), fraction=0.2, seed=seed, together=pairs)[1]
            < 200
        ).sum()
        for seed in range(20)
    ]
    assert 35 < np.mean(shares) < 45


def test_groups_that_share_a_near_duplicate_are_one():
    assert merge_groups(["a", "b", "c", "d", "e"], [[0, 2], [3, 4], [2, 3]]) == [
        "a",
        "b",
        "a",
        "a",
        "a",
    ]
    assert merge_groups(["a", "a", "b"], [[0, 1]]) == ["a", "a", "b"]
    groups = [f"patient {place // 4}" for place in range(80)]
    labels = np.arange(80, dtype=np.int32) // 4 % 2
    alike = [[0, 4], [8, 12]]
    held = stratified_split(
        labels, np.arange(80), fraction=0.3, seed=0, groups=groups, together=alike
    )[1]
    for one, other in alike:
        assert (one in held) == (other in held)
    assert all(len({place in held for place in range(p, p + 4)}) == 1 for p in range(0, 80, 4))
