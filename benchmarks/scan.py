"""Speed of `scan` against a loop of Pillow's `Image.open(path).load()` on photographs.

    python benchmarks/scan.py --archive trashnet-subset.zip --json scan.json

`--archive` holds JPEG photographs; each is written `--copies` times with a unique comment, so that
no two files are equal. Rounds alternate between the loop, decoding only (the validation before
training) and `unfreeze.scan` with every check. Each starts with an empty cache, and the first round
is excluded. Files are in the page cache for all three.
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
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images


def unpack(archive: str, copies: int, folder: Path) -> int:
    """Write the photographs with unique JPEG comments; returns their number."""
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
    """The baseline: open and load each file with Pillow."""
    for path in sorted(folder.rglob("*.jp*g")):
        with Image.open(path) as image:
            image.load()


def decoding(folder: Path) -> None:
    """Decode every file without other checks; baseline JPEG is decoded at reduced size."""
    index = build_index(open_source(str(folder)))
    assert len(check_images(index).usable) == len(index)


def every_check(folder: Path) -> None:
    """`unfreeze.scan` with all checks."""
    result = unfreeze.scan(str(folder))
    assert result.usable == result.pictures == result.decoded


WAYS: dict[str, Callable[[Path], None]] = {
    "loop": loop,
    "decoding only": decoding,
    "every check": every_check,
}


def timed(way: str, folder: Path, cache: Path) -> float:
    """Seconds with an empty cache in a new process, imports excluded.

    One process for all would bias the results: Pillow's loop takes 0.73 or 1.0 ms per file,
    depending on what its process allocated before.
    """
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, __file__, "--archive", str(folder), "--way", way]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(process.stdout)


def once(way: str, folder: Path) -> None:
    """Run one variant and print its seconds."""
    began = time.perf_counter()
    WAYS[way](folder)
    print(time.perf_counter() - began)


def main() -> None:
    """Run all rounds and print medians, range and ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    parser.add_argument(
        "--way", choices=list(WAYS), help="only this variant, on the folder --archive"
    )
    args = parser.parse_args()
    if args.way:
        return once(args.way, Path(args.archive))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "data", Path(scratch) / "cache"
        os.environ["UNFREEZE_CACHE"] = str(cache)
        count = unpack(args.archive, args.copies, folder)
        for turn in range(args.rounds + 1):
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
            "rounds": [round(value, 3) for value in took],
        }
        for name, took in seconds.items()
    }
    report = {
        "files": count,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "unfreeze": unfreeze.__version__,
        "seconds": rows,
    }
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw_rounds(args.plot, {f"{count:,} photographs": seconds}, "s", peer="loop", less=True)


if __name__ == "__main__":
    main()
