"""Splits of images that belong to several groups at once, such as images with several labels.

Iterative stratification: Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label
Data", ECML PKDD 2011. Here the unit of the split may be several images that belong together.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Membership = npt.NDArray[np.bool_]  # [N, C]: whether an image is in a group
Parts = npt.NDArray[np.int64]
_STREAM = 3  # a random stream of the seed of its own; see `splits`


def iterative_parts(
    members: Membership, units: npt.NDArray[np.integer], shares: Sequence[float], seed: int
) -> Parts:
    """The part `[N]` of each image: each has about its share of every group of `members` [N, C].

    `units` [N]: images with the same number stay together. `shares` add up to 1. The rarest group
    is distributed first, each unit to the part that lacks most of it; then the rarest group of
    those that remain. Ties go to the part with most room, then are broken by `seed`.
    """
    numbers, unit_of = np.unique(units, return_inverse=True)
    sizes = np.bincount(unit_of, minlength=len(numbers)).astype(np.float64)
    table = np.zeros((len(numbers), members.shape[1]))
    np.add.at(table, unit_of, members)
    draw = np.random.default_rng([seed, _STREAM])
    order = draw.permutation(len(numbers))  # of units that are alike
    missing = np.outer(shares, table.sum(axis=0))  # [parts, C]: what each part still lacks
    left = table.sum(axis=0)  # images of each group that are in no part yet
    room = np.array(shares) * len(units)
    part_of = np.full(len(numbers), -1, np.int64)

    def place(unit: int, wanted: npt.NDArray[np.float64]) -> None:
        best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
        best = best[room[best] >= room[best].max() - 1e-9]
        part = int(best[0] if len(best) == 1 else draw.choice(best))
        part_of[unit] = part
        missing[part] -= table[unit]
        room[part] -= sizes[unit]
        left[:] -= table[unit]

    while (left > 0).any():
        group = int(np.where(left > 0, left, np.inf).argmin())
        some = order[(part_of[order] < 0) & (table[order, group] > 0)]
        # units with many images of the group first, while there is room for them
        for unit in some[np.argsort(-table[some, group], kind="stable")].tolist():
            place(unit, missing[:, group])
    rest = order[part_of[order] < 0]  # images in no group
    for unit in rest[np.argsort(-sizes[rest], kind="stable")].tolist():
        place(unit, room)
    parts: Parts = part_of[unit_of]
    return parts


def with_every_group(members: Membership, units: npt.NDArray[np.integer], parts: Parts) -> Parts:
    """The parts, with units moved so that part 0 has an image of every group that has any."""
    parts = parts.copy()
    for group in np.argsort(members.sum(axis=0), kind="stable").tolist():
        inside = members[:, group]
        if not inside.any() or (parts[inside] == 0).any():
            continue
        candidates, counts = np.unique(units[np.isin(units, units[inside])], return_counts=True)
        parts[units == candidates[counts.argmin()]] = 0
    return parts


def rarest_groups(members: Membership, least: int) -> npt.NDArray[np.int32]:
    """The number `[N]`, from 0, of the rarest group that each image belongs to.

    Images in no group form one with those whose rarest group would have fewer than `least` images.
    """
    counts = members.sum(axis=0)
    rarest = np.where(members, counts, len(members) + 1).argmin(axis=1) + 1
    rarest[~members.any(axis=1)] = 0
    frequent = np.bincount(rarest, minlength=members.shape[1] + 1) >= least
    rarest[~frequent[rarest]] = 0
    numbers: npt.NDArray[np.int32] = np.unique(rarest, return_inverse=True)[1].astype(np.int32)
    return numbers
