"""What 1e6 to 1e9 images cost: the index as it is, measured, and an index by shard, simulated.

Example: `python benchmarks/scale.py --json benchmarks/results/scale.json`. Each point is measured
in its own process. Seconds are CPU seconds, so other programs change them little; bytes are the
growth of the peak of memory. Above the largest measured point everything is extrapolated as linear,
with the assumptions in `ASSUMED`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
PER_SHARD = 10_000  # images of a shard: 1.1 GB of 110 kB images
LANES = 1_024  # fixed, whatever the number of processes: what makes batches independent of it
WINDOW = 8  # shards of a lane that are open, and shuffled, at once
ASSUMED = {
    "bytes of an image file": 110_000,  # ImageNet's mean
    "CPU seconds to check a file": 0.79e-3,  # docs/RESULTS.md, Scan
    # 3 min 40 s an epoch of 1,281,167 images on 64 V100 (the reference's README)
    "GPU hours for an epoch of 1e6 images": 220 * 64 / 3600 / 1.281167,
}


def resident() -> int:
    """Bytes of this process that are in memory."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


def peak() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def index(count: int) -> dict[str, float]:
    """`build_index` over a source that lists `count` names, as an archive's directory does."""
    from unfreeze.data.index.index import build_index
    from unfreeze.data.sources.source import Source

    class Listed(Source):
        kind, where = "memory", "memory"

        def read(self, row: int) -> bytes:
            raise OSError(row)

        def head(self, row: int, count: int) -> bytes:
            return b""

        def fingerprint(self) -> str:
            return ""

    before, began = resident(), time.process_time()
    source = Listed()
    source.names = [f"{i // PER_SHARD:06d}/{i:010d}.jpg" for i in range(count)]
    source.sizes = np.full(count, 110_000, np.int64)
    listed = time.process_time()
    found = build_index(source, strange_classes=True)
    ended = time.process_time()
    return {
        "images": len(found),
        "seconds": ended - listed,
        "seconds of the names": listed - began,
        "bytes": (peak() - before) / count,
    }


def order(count: int) -> dict[str, float]:
    """The order of an epoch as it is: one permutation of all images in every process."""
    from unfreeze.data.augment.parameters import permutation

    positions = np.arange(count)
    before, began = resident(), time.process_time()
    drawn = permutation(0, 1, positions)
    return {
        "images": len(drawn),
        "seconds": time.process_time() - began,
        "bytes": (peak() - before) / count,
    }


def lane_order(seed: int, epoch: int, lane: int, shards: Ids, sizes: Ids) -> Iterator[Ids]:
    """Images of a lane in the order of an epoch, as (shard, number) pairs `[n, 2]`, lazily.

    The lane's shards come in a random order; WINDOW of them at a time are shuffled together.
    Depends on seed, epoch and lane only.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + lane]))
    drawn = random.permutation(shards)
    for start in range(0, len(drawn), WINDOW):
        window = [
            np.stack([np.full(sizes[s], s), np.arange(sizes[s])], 1)
            for s in drawn[start : start + WINDOW]
        ]
        yield random.permutation(np.concatenate(window))


def sharded(count: int, world: int) -> dict[str, float]:
    """What one of `world` processes holds and computes with an index by shard.

    Of each of its images: offset and size in the shard (12 bytes). Of every shard: its size. Names
    stay in the shards' own index files and are read when a message needs one.
    """
    shards = count // PER_SHARD
    before, began = resident(), time.process_time()
    sizes = np.full(shards, PER_SHARD, np.int64)
    lanes = np.arange(shards) % LANES
    mine = [lane for lane in range(LANES) if lane % world == 0]  # of rank 0
    held = np.flatnonzero(np.isin(lanes, mine))
    entries = np.zeros(int(sizes[held].sum()), np.dtype([("offset", "<i8"), ("size", "<i4")]))
    entries["size"] = 110_000
    entries["offset"] = np.arange(len(entries)) % PER_SHARD * 110_512
    loaded = time.process_time()
    images = sum(
        len(block)
        for lane in mine
        for block in lane_order(0, 1, lane, np.flatnonzero(lanes == lane), sizes)
    )
    ended = time.process_time()
    return {
        "images": count,
        "processes": world,
        "share": images,
        "seconds to load": loaded - began,
        "seconds of an epoch's order": ended - loaded,
        "bytes of a process": peak() - before,
    }


def same_batches() -> dict[str, bool]:
    """That the order is a permutation, and batches do not depend on the number of processes."""
    count, per_shard, lanes = 40_960, 64, 16
    shards = np.arange(count // per_shard)
    sizes = np.full(len(shards), per_shard, np.int64)

    def epoch(world: int) -> list[set[tuple[int, int]]]:
        streams = {
            lane: np.concatenate(
                list(lane_order(3, 2, lane, shards[shards % lanes == lane], sizes))
            )
            for rank in range(world)
            for lane in range(rank, lanes, world)  # the lanes of a rank
        }
        share = 256 // lanes
        return [
            {tuple(row) for lane in range(lanes) for row in streams[lane][at : at + share].tolist()}
            for at in range(0, count // lanes, share)
        ]

    one, four = epoch(1), epoch(4)
    everything = set().union(*one)
    return {"each image once": len(everything) == count, "1 = 4 processes": one == four}


def mixing() -> dict[str, float]:
    """How many shards the images of a batch of 4,096 come from, beside a full permutation."""
    shards = np.arange(10_240)  # 1e8 images
    sizes = np.full(len(shards), PER_SHARD, np.int64)
    batch = [
        next(lane_order(0, 1, lane, shards[shards % LANES == lane], sizes))[:4]
        for lane in range(LANES)
    ]
    drawn = np.random.default_rng(0).integers(0, len(shards), 4096)
    return {
        "shards in a batch, lanes": len(np.unique(np.concatenate(batch)[:, 0])),
        "shards in a batch, permutation": len(np.unique(drawn)),
    }


def paper(points: dict[str, list[dict[str, float]]]) -> list[dict[str, float]]:
    """Extrapolation to 1e8 and 1e9 images from the largest measured points."""
    listed, drawn = points["index"][-1], points["order"][-1]
    rows = []
    for images in (1e6, 1e8, 1e9):
        rows.append(
            {
                "images": images,
                "index, GiB in each process": listed["bytes"] * images / 2**30,
                "index, seconds": listed["seconds"] / listed["images"] * images,
                "order, GiB in each process": drawn["bytes"] * images / 2**30,
                "order, seconds an epoch": drawn["seconds"] / drawn["images"] * images,
                "by shard, GiB in each of 512": 12 * images / 512 / 2**30,
                "check, CPU hours": ASSUMED["CPU seconds to check a file"] * images / 3600,
                "epoch, V100 hours": ASSUMED["GPU hours for an epoch of 1e6 images"] * images / 1e6,
                "epoch, TB read": ASSUMED["bytes of an image file"] * images / 1e12,
            }
        )
    return rows


def in_child(what: str, *numbers: int) -> dict[str, float]:
    """A point in a process of its own."""
    words = [sys.executable, __file__, "--point", what, *map(str, numbers)]
    answer = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    point: dict[str, float] = json.loads(answer)
    return point


def main() -> None:
    """Measure all points, check the simulated order, extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 3e6, 1e7])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--point", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        what, *numbers = args.point
        measure: Any = {"index": index, "order": order, "sharded": sharded}[what]
        print(json.dumps(measure(*map(int, numbers))))
        return
    sizes = [int(size) for size in args.sizes]
    points = {
        "index": [in_child("index", size) for size in sizes],
        "order": [in_child("order", size) for size in sizes],
        "sharded": [
            in_child("sharded", 10**8, 512),
            in_child("sharded", 10**9, 512),
            in_child("sharded", 10**9, 64),
        ],
    }
    result = {
        "measured": points,
        "simulated": {**same_batches(), **mixing()},
        "assumed": ASSUMED,
        "extrapolated": paper(points),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
