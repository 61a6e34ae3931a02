"""Mutated image files through `scan`'s decoders: crashes, hangs and unnamed problems.

    python benchmarks/fuzz.py --files 10000 --json fuzz.json

Seeds are written by Pillow in seven formats and several modes. Each file is a seed with a seeded
mutation: bytes flipped, set, cut off, taken out, put in, doubled, swapped with another seed's, or
numbers changed. Every one must end usable or left out with a reason of the vocabulary, in
processes that watch time and memory. Exit code 1 if any did not.
"""

import argparse
import importlib
import io
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from unfreeze.data.examine import Examination, examine
from unfreeze.data.supervised import MEMORY, Lost, supervised
from unfreeze.data.undecodable import Reason

FORMATS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "CMYK", "L", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L"),
}


def seeds() -> list[tuple[str, bytes]]:
    """(format, bytes) of every format and mode, small and a little larger."""
    found = []
    draw = np.random.default_rng(0)
    for kind, modes in FORMATS.items():
        for mode in modes:
            for side in (9, 40):
                noise = draw.integers(0, 256, (6, 6, 3), np.uint8)
                image = Image.fromarray(noise).resize((side, side + 3))
                if mode == "I;16":
                    deep = draw.integers(0, 2**16, (side, side), np.uint16)
                    image = Image.fromarray(deep)
                else:
                    image = image.convert(mode)
                options = [{}]
                if kind == "TIFF" and mode in ("RGB", "L"):
                    options += [{"compression": c} for c in ("tiff_lzw", "jpeg", "tiff_deflate")]
                if kind == "JPEG":
                    options += [{"progressive": True}]
                for option in options:
                    held = io.BytesIO()
                    image.save(held, kind, **option)
                    found.append((kind, held.getvalue()))
    return found


class Mutants:
    """`mutants(n)`: (format, examination) of the n-th file. What processes run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.seeds = seed, seeds()

    def data(self, n: int) -> tuple[str, bytes]:
        """The n-th file: always the same one."""
        draw = np.random.default_rng((self.seed, n))
        kind, data = self.seeds[int(draw.integers(len(self.seeds)))]
        changed = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            changed = self._once(changed, draw)
        return kind, bytes(changed)

    def _once(self, data: bytearray, draw: np.random.Generator) -> bytearray:
        if not data:
            return data
        early = draw.random() < 0.5  # headers are where decoders are led astray
        place = int(draw.integers(min(64, len(data)) if early else len(data)))
        length = int(draw.integers(1, 9))
        match int(draw.integers(8)):
            case 0:
                data[place] ^= 1 << int(draw.integers(8))
            case 1:
                data[place : place + length] = (
                    bytes([int(draw.choice([0, 255, 127, 128]))]) * length
                )
            case 2:
                del data[int(draw.integers(len(data))) :]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = draw.bytes(length)
            case 5:
                data[place:place] = data[place : place + int(draw.integers(1, 200))]
            case 6:
                other = self.seeds[int(draw.integers(len(self.seeds)))][1]
                data[place : place + 16] = other[place : place + 16]
            case 7:
                size = int(draw.choice([2, 4]))
                value = int(draw.choice([0, 1, 2**31 - 1, 2**16 - 1, 2**15])) % 256**size
                order = "big" if draw.random() < 0.5 else "little"
                data[place : place + size] = value.to_bytes(size, order)
        return data

    def __call__(self, n: int) -> tuple[str, Examination]:
        """Mutates and examines."""
        kind, data = self.data(n)
        return kind, examine(data, f"{n}.{kind.lower()}")


def main() -> None:
    """Counts by format and by what became of each file."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--files", type=int, default=10_000)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--workers", type=int, default=2)
    ask.add_argument("--seconds", type=float, default=20.0, help="for one file")
    ask.add_argument("--json")
    given = ask.parse_args()
    began = time.monotonic()
    formats: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    # by the name that other processes find it under
    mutants = importlib.import_module("fuzz").Mutants(given.seed)
    watched = supervised(
        mutants, range(given.files), given.workers, seconds=given.seconds, memory=MEMORY
    )
    for n, answer in watched:
        if isinstance(answer, Lost):
            ends[answer.kind] += 1
            bad.append((n, answer.detail))
            continue
        kind, found = answer
        formats[kind] += 1
        end = found.reason or "usable"
        ends[end] += 1
        if end != "usable" and (end not in get_args(Reason) or not found.detail):
            bad.append((n, f"unnamed: {end!r} {found.detail!r}"))
    report = {
        "files": given.files,
        "seed": given.seed,
        "formats": dict(formats.most_common()),
        "ends": dict(ends.most_common()),
        "crashes": ends["crashed"],
        "hangs": ends["hung"],
        "unnamed": sum(what.startswith("unnamed") for _, what in bad),
        "bad": bad[:50],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
