"""Fuzz the image decoders of `scan`: count crashes, hangs and unnamed problems.

    python benchmarks/fuzz.py --files 10000 --json fuzz.json

Pillow writes seed files in seven formats and several modes. Each test file is a seed with random,
reproducible mutations: bytes are flipped, overwritten, truncated, deleted, inserted, repeated,
replaced by those of another seed, or numbers are changed. Every file must be usable or be left out
with one of the known reasons, in worker processes with limits on time and memory. Exits with code 1
if any file fails this.
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

from unfreeze.data.images.errors import Reason
from unfreeze.data.validate.checks import ImageCheck, check_image
from unfreeze.data.validate.worker_pool import MEMORY, LostTask, run_in_workers

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
    """(format, bytes) of a seed file for every format, mode and two sizes."""
    files = []
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
                    stream = io.BytesIO()
                    image.save(stream, kind, **option)
                    files.append((kind, stream.getvalue()))
    return files


class Mutants:
    """`mutants(n)`: (format, examination) of the n-th file; called in worker processes."""

    def __init__(self, seed: int) -> None:
        self.seed, self.seeds = seed, seeds()

    def data(self, n: int) -> tuple[str, bytes]:
        """(format, bytes) of the n-th file; deterministic."""
        draw = np.random.default_rng((self.seed, n))
        kind, data = self.seeds[int(draw.integers(len(self.seeds)))]
        changed = bytearray(data)
        for _ in range(int(draw.integers(1, 4))):
            changed = self._once(changed, draw)
        return kind, bytes(changed)

    def _once(self, data: bytearray, draw: np.random.Generator) -> bytearray:
        if not data:
            return data
        early = draw.random() < 0.5  # headers are where decoders fail most
        offset = int(draw.integers(min(64, len(data)) if early else len(data)))
        length = int(draw.integers(1, 9))
        match int(draw.integers(8)):
            case 0:
                data[offset] ^= 1 << int(draw.integers(8))
            case 1:
                data[offset : offset + length] = (
                    bytes([int(draw.choice([0, 255, 127, 128]))]) * length
                )
            case 2:
                del data[int(draw.integers(len(data))) :]
            case 3:
                del data[offset : offset + length]
            case 4:
                data[offset:offset] = draw.bytes(length)
            case 5:
                data[offset:offset] = data[offset : offset + int(draw.integers(1, 200))]
            case 6:
                other = self.seeds[int(draw.integers(len(self.seeds)))][1]
                data[offset : offset + 16] = other[offset : offset + 16]
            case 7:
                size = int(draw.choice([2, 4]))
                value = int(draw.choice([0, 1, 2**31 - 1, 2**16 - 1, 2**15])) % 256**size
                order = "big" if draw.random() < 0.5 else "little"
                data[offset : offset + size] = value.to_bytes(size, order)
        return data

    def __call__(self, n: int) -> tuple[str, ImageCheck]:
        """Examine the n-th file."""
        kind, data = self.data(n)
        return kind, check_image(data, f"{n}.{kind.lower()}")


def main() -> None:
    """Examine all files and print counts by format and outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit per file")
    parser.add_argument("--json")
    args = parser.parse_args()
    began = time.monotonic()
    formats: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    # imported by name, so that worker processes can unpickle it
    mutants = importlib.import_module("fuzz").Mutants(args.seed)
    watched = run_in_workers(
        mutants, range(args.files), args.workers, seconds=args.seconds, memory=MEMORY
    )
    for n, result in watched:
        if isinstance(result, LostTask):
            ends[result.kind] += 1
            bad.append((n, result.detail))
            continue
        kind, examination = result
        formats[kind] += 1
        end = examination.reason or "usable"
        ends[end] += 1
        if end != "usable" and (end not in get_args(Reason) or not examination.detail):
            bad.append((n, f"unnamed: {end!r} {examination.detail!r}"))
    report = {
        "files": args.files,
        "seed": args.seed,
        "formats": dict(formats.most_common()),
        "ends": dict(ends.most_common()),
        "crashes": ends["crashed"],
        "hangs": ends["hung"],
        "unnamed": sum(what.startswith("unnamed") for _, what in bad),
        "bad": bad[:50],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
