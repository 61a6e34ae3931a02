"""`scan` beside a loop of Pillow's `Image.open(path).load()`, on a folder of photographs.

    python benchmarks/scan.py --archive trashnet-subset.zip --json scan.json

`--archive` holds JPEG photographs; each is written `--copies` times with a comment of its own, so
that no two files are the same. Rounds alternate: the loop; decoding only (the check that a training
run makes); `unfreeze.scan` with every check. Each begins without anything known, and the first
round is not counted. Files are in the page cache for all three.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import unfreeze
from drawing import draw_rounds
from unfreeze.data.index import build_index
from unfreeze.data.scan import check
from unfreeze.data.sources.open import open_source


def unpack(archive: str, copies: int, folder: Path) -> int:
    """Photographs with a JPEG comment each; how many."""
    count = 0
    with zipfile.ZipFile(archive) as members:
        for name in sorted(members.namelist()):
            if not name.lower().endswith((".jpg", ".jpeg")):
                continue
            data = members.read(name)
            for copy in range(copies):
                words = f"{copy}".encode()
                comment = b"\xff\xfe" + (len(words) + 2).to_bytes(2, "big") + words
                target = folder / f"{copy}" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data[:2] + comment + data[2:])
                count += 1
    return count


def loop(folder: Path) -> None:
    """What people write."""
    for path in sorted(folder.rglob("*.jp*g")):
        with Image.open(path) as image:
            image.load()


def decoding(folder: Path) -> None:
    """Every file decoded, nothing else; ordinary JPEG is put together small."""
    index = build_index(open_source(str(folder)))
    assert len(check(index).usable) == len(index)


def every_check(folder: Path) -> None:
    """Oddities, duplicates and all."""
    found = unfreeze.scan(str(folder))
    assert found.usable == found.pictures == found.decoded


WAYS: dict[str, Callable[[Path], None]] = {
    "loop": loop,
    "decoding only": decoding,
    "every check": every_check,
}


def timed(way: str, folder: Path, cache: Path) -> float:
    """Seconds, with nothing known before, in a process of its own, its imports not counted.

    One process for all would do wrong to some: Pillow's loop takes 0.73 or 1.0 ms a file by what
    its process allocated before.
    """
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, __file__, "--archive", str(folder), "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def once(way: str, folder: Path) -> None:
    """Prints the seconds that a way takes."""
    began = time.perf_counter()
    WAYS[way](folder)
    print(time.perf_counter() - began)


def main() -> None:
    """Medians, spread and ratios."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--archive", required=True)
    ask.add_argument("--copies", type=int, default=4)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--json")
    ask.add_argument("--plot")
    ask.add_argument("--way", choices=list(WAYS), help="this one alone, of the folder --archive")
    given = ask.parse_args()
    if given.way:
        return once(given.way, Path(given.archive))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "data", Path(place) / "cache"
        os.environ["UNFREEZE_CACHE"] = str(cache)
        count = unpack(given.archive, given.copies, folder)
        for turn in range(given.rounds + 1):
            for name in WAYS:
                took = timed(name, folder, cache)
                if turn:
                    seconds[name].append(took)
    rows = {
        name: {
            "median": round(statistics.median(took), 3),
            "min": round(min(took), 3),
            "max": round(max(took), 3),
            "images_per_second": round(count / statistics.median(took)),
            "ratio": round(
                statistics.median(a / b for a, b in zip(seconds["loop"], took, strict=True)), 2
            ),
            "rounds": [round(one, 3) for one in took],
        }
        for name, took in seconds.items()
    }
    report = {
        "files": count,
        "rounds": given.rounds,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "unfreeze": unfreeze.__version__,
        "seconds": rows,
    }
    print(json.dumps(report, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        draw_rounds(given.plot, {f"{count:,} photographs": seconds}, "s", peer="loop", less=True)


if __name__ == "__main__":
    main()
