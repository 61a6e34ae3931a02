"""Iterative stratification: label shares are kept better than at random, and groups whole."""

import numpy as np
import pytest

from unfreeze.data.index.stratification import (
    iterative_parts,
    rarest_groups,
    with_every_group,
)


def labels(seed, images=400, classes=12):
    """Memberships with frequencies from a half to below a hundredth, as label sets have."""
    draw = np.random.default_rng(seed)
    return draw.random((images, classes)) < 0.5 / (1 + np.arange(classes)) ** 1.6


def distance(members, parts, shares):
    """Mean relative gap between the share of a label in a part and in all images."""
    whole = members.mean(axis=0)
    gaps = [np.abs(members[parts == k].mean(axis=0) - whole) / whole for k in range(len(shares))]
    return np.mean(gaps)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.2,) * 5])
def test_label_shares_are_kept_better_than_at_random(shares):
    ours, random = [], []
    for seed in range(8):
        members = labels(seed)
        members = members[:, members.any(axis=0)]
        parts = iterative_parts(members, np.arange(len(members)), shares, seed)
        draw = np.random.default_rng(seed)
        ours.append(distance(members, parts, shares))
        random.append(distance(members, draw.permutation(parts), shares))
        sizes = np.bincount(parts) / len(parts)
        assert sizes == pytest.approx(shares, abs=0.03)
    assert all(a < b for a, b in zip(ours, random, strict=True))
    assert np.mean(ours) < 0.5 * np.mean(random)


def test_one_label_each_is_stratified_to_the_image():
    numbers = np.repeat(np.arange(4), [100, 50, 25, 10])
    parts = iterative_parts(np.eye(4, dtype=bool)[numbers], np.arange(185), (0.8, 0.2), 0)
    assert [int((parts[numbers == c] == 1).sum()) for c in range(4)] == [20, 10, 5, 2]


def test_units_stay_together_and_shares_are_of_images():
    members, draw = labels(1), np.random.default_rng(1)
    units = draw.integers(0, 90, len(members))
    parts = iterative_parts(members, units, (0.75, 0.25), 3)
    assert all(len(set(parts[units == unit])) == 1 for unit in units)
    assert (parts == 1).mean() == pytest.approx(0.25, abs=0.03)
    frequent = members.sum(axis=0) >= 40
    shares = members[parts == 1].sum(axis=0)[frequent] / members.sum(axis=0)[frequent]
    assert shares == pytest.approx([0.25] * int(frequent.sum()), abs=0.06)


def test_the_split_depends_on_the_seed_alone():
    members, units = labels(2), np.arange(400)
    one = iterative_parts(members, units, (0.8, 0.2), 5)
    assert (one == iterative_parts(members, units, (0.8, 0.2), 5)).all()
    assert (one != iterative_parts(members, units, (0.8, 0.2), 6)).any()


def test_training_keeps_an_image_of_every_label():
    members = np.zeros((20, 2), bool)
    members[3, 0], members[5:15, 1] = True, True
    units = np.arange(20)
    units[4] = 3  # a copy of the only image with label 0
    parts = np.ones(20, np.int64)
    parts[10:] = 0
    kept = with_every_group(members, units, parts)
    assert kept[3] == kept[4] == 0 and (kept != parts).sum() == 2
    parts[:] = 1
    assert (with_every_group(members, units, parts)[members[:, 1]] == 0).sum() == 1


def test_each_image_has_the_number_of_its_rarest_group():
    members = np.zeros((30, 3), bool)
    members[:20, 0], members[5:15, 1], members[7:9, 2] = True, True, True
    numbers = rarest_groups(members, 4)
    assert len(set(numbers)) == 3
    assert len(set(numbers[[5, 6, *range(9, 15)]])) == 1  # the second is rarer than the first
    assert set(numbers[7:9]) == set(numbers[20:])  # the third is too rare: with those in none
    assert set(numbers[:5]) == set(numbers[15:20]) and numbers[0] != numbers[5]
