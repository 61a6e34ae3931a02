"""Counter-based random numbers: a pure function of (seed, epoch, id, view, counter).

There is no state, so workers, sample order, processes and resuming do not change the crops. The
function is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with one stream for each (seed, epoch,
view, id), whose start is mixed from these four.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(
    seed: int, epoch: int, ids: Sequence[int | str] | npt.NDArray[np.int64], view: int, count: int
) -> npt.NDArray[np.float64]:
    """Uniform random numbers `[B, count]` in [0, 1), float64; row b depends on `ids[b]` only."""
    key = _mix(np.array([seed & _MASK], np.uint64) + _GOLDEN)
    for part in (epoch, view):
        key = _mix(key ^ _mix(np.array([part & _MASK], np.uint64) + _GOLDEN))
    streams = _mix(key ^ _mix(_numbers(ids) + _GOLDEN))
    counters = streams[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(
    seed: int, epoch: int, ids: npt.NDArray[np.int64], stream: int = -1
) -> npt.NDArray[np.int64]:
    """`ids` in a random order, determined by seed and epoch."""
    keys = uniforms(seed, epoch, ids, stream, 1)[:, 0]
    return ids[np.argsort(keys, kind="stable")]


def _numbers(ids: Sequence[int | str] | npt.NDArray[np.int64]) -> U64:
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64).view(np.uint64)
    return np.array([_number(i) for i in ids], np.uint64)


def _number(name: int | str) -> int:
    if isinstance(name, str):
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return int(name) & _MASK


def _mix(z: U64) -> U64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
