"""Scaling of time and memory with images, processes, crops, prototypes and queue length.

    python benchmarks/growth.py --json growth.json --plot growth.png
    python benchmarks/growth.py --only images --most 1e6 --json growth.json

`images`: seconds from the call of `pretrain` to the end of its first step, on a zip of JPEG files
of 8x8 pixels in 1,000 class folders: `cold` without any cache, and `warm` after every file was
validated by an earlier run (`--store off`, as for images that do not fit into the pixel cache);
`processor` is the CPU time of the warm start, `index` that of listing the files. The other series
are seconds of a training step of a small network at 16 pixels with 2 views per image, batch 64,
K 300 and no queue, with one of these varied; on a CPU they are CPU time, which other programs
change little. `processes` share a batch of 256; there `processor` is that of rank 0, `seconds` is
wall-clock time, and shared memory (libraries) counts once.

Each point is measured in its own process, so that its peak memory is not that of another point.
Seconds are the fastest of several rounds, because other programs can only add to them. `exponent`
is the slope of a line through all points in log-log space, `last` the slope through the last three,
where constant costs matter least: 1 is linear. `each` is the cost of one more image, prototype ...
between the last two points.
"""

import argparse
import io
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import unfreeze

SERIES: dict[str, list[int]] = {
    "images": [1_000, 10_000, 100_000, 1_000_000],
    "processes": [1, 2],
    "crops": [2, 4, 8, 16, 32],
    "prototypes": [300, 1_000, 3_000, 10_000, 30_000],
    "queue": [1_024, 4_096, 16_384, 65_536],
}
QUICK = {
    "images": [200, 400],
    "processes": [1, 2],
    "crops": [2, 4],
    "prototypes": [30, 300],
    "queue": [64, 128],
}
NAMES = {"images": "images", "crops": "views per image", "queue": "features in the queue"}
LINEAR = 1.1  # largest exponent that counts as linear, args measurement noise
HERE = Path(__file__).parent
Rows = list[dict[str, Any]]


def archive(path: Path, count: int) -> Path:
    """Write a zip of `count` tiny JPEG files, uncompressed."""
    draw, images = np.random.default_rng(0), []
    for _ in range(64):
        stream = io.BytesIO()
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG", quality=50)
        images.append(stream.getvalue())
    with zipfile.ZipFile(path, "w") as members:
        for number in range(count):
            name = f"class{number % 1000:04}/image{number:08}.jpg"
            members.writestr(zipfile.ZipInfo(name), images[number % len(images)])
    return path


def measured(options: dict[str, Any], environment: dict[str, str], world: int = 1) -> Rows:
    """Results of `growing.py` in each of `world` new processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(world):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
        launch |= {"TORCHELASTIC_RUN_ID": "growth", **{name: str(v) for name, v in ranks.items()}}
        started.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "growing.py"), json.dumps(options)],
                env={**os.environ, **environment, **(launch if world > 1 else {})},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"Measuring a point failed: {options}")
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def images(sizes: list[int], args: argparse.Namespace, environment: dict[str, str]) -> Rows:
    """Cold and warm starts for each number of images."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            data = archive(Path(folder) / "images.zip", size)
            cached = {**environment, "UNFREEZE_CACHE": folder}
            options = {"what": "start", "data": str(data), "device": args.device}
            cold = measured(options, cached)[0]
            warm = [measured(options, cached)[0] for _ in range(args.starts)]
            best = min(warm, key=lambda row: row["seconds"])
        least = {name: min(row[name] for row in warm) for name in ("index", "processor")}
        row = {"n": size, **least, "warm": best["seconds"], "cold": cold["seconds"]}
        rows.append({**row, "cold mib": cold["mib"], "mib": best["mib"]})
        print(rows[-1], flush=True)
    return rows


def processes(sizes: list[int], args: argparse.Namespace, environment: dict[str, str]) -> Rows:
    """One run in data parallel by several processes, with the same global batch size."""
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        data = archive(Path(folder) / "images.zip", 256 if args.quick else 4_096)
        for size in sizes:
            options = {"what": "processes", "data": str(data), "device": args.device}
            results = measured(options, {**environment, "UNFREEZE_CACHE": folder}, size)
            mib = [row["mib"] - row["shared"] for row in results]
            times = {name: results[0][name] for name in ("seconds", "processor")}
            rows.append({"n": size, **times, "mib": round(sum(mib), 1)})
            print(rows[-1], flush=True)
    return rows


def steps(
    name: str, sizes: list[int], args: argparse.Namespace, environment: dict[str, str]
) -> Rows:
    """A training step for each value of one setting."""
    rows = []
    for size in sizes:
        options = {"what": "step", "rounds": args.rounds, "device": args.device, name: size}
        rows.append({"n": size, **measured(options, environment)[0]})
        print(rows[-1], flush=True)
    return rows


def slopes(rows: Rows) -> dict[str, dict[str, float]]:
    """`exponent`, `last` and `each` of each measured quantity; see the module docstring."""
    n = [row["n"] for row in rows]
    results = {}
    for name in rows[0]:
        y = [row[name] for row in rows]
        if name == "n" or min(y) <= 0:
            continue
        fitted, last = _slope(n, y), _slope(n[-3:], y[-3:])
        each = (y[-1] - y[-2]) / (n[-1] - n[-2])
        results[name] = {"exponent": round(fitted, 3), "last": round(last, 3)}
        results[name]["each"] = float(f"{each:.3g}")
    return results


def _slope(n: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(n), np.log(y), 1)[0])


def superlinear(fitted: dict[str, dict[str, float]]) -> list[str]:
    """Names of the quantities that grow faster than linearly."""
    return [name for name, s in fitted.items() if max(s["exponent"], s["last"]) > LINEAR]


def draw(path: str, series: dict[str, Any]) -> None:
    """Log-log plots of seconds (top) and memory (bottom), one column per series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(series), 7), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(series), squeeze=False)
    for column, (name, of) in enumerate(series.items()):
        rows, fitted = of["points"], of["slopes"]
        n = [row["n"] for row in rows]
        for axes, memory in ((grid[0][column], False), (grid[1][column], True)):
            drawn = [q for q in fitted if q.endswith("mib") == memory]
            for quantity in drawn:
                label = f"{quantity}, at the end n^{fitted[quantity]['last']:.2f}"
                axes.loglog(n, [row[quantity] for row in rows], "o-", markersize=4, label=label)
            most = max(row[quantity] for row in rows for quantity in drawn)
            axes.loglog(n, [most * x / n[-1] for x in n], ":", color="#7a7a7a", label="linear")
            least = min(row[quantity] for row in rows for quantity in drawn)
            axes.set_ylim(least / 2, most * 2)
            axes.set_xticks(n, [_short(x) for x in n])
            axes.set_xticks([], minor=True)
            axes.set_xlabel(NAMES.get(name, name))
            axes.set_ylabel("peak MiB" if memory else "seconds")
            axes.legend(fontsize=8, frameon=False)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        grid[0][column].set_title(name, loc="left", fontsize=11)
    figure.savefig(path)


def _short(n: int) -> str:
    return f"{n // 1000:,}k" if n >= 10_000 else f"{n:,}"


def main() -> None:
    """Measure all series; print one line per point, then the slopes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--most", type=float, default=math.inf, help="skip larger sizes")
    parser.add_argument("--rounds", type=int, default=9, help="steps per point")
    parser.add_argument("--starts", type=int, default=3, help="warm starts per point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", help="folder for the archives (0.8 GB for 1e6 images)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a smoke test")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    environment = {"OMP_NUM_THREADS": str(args.threads)}
    series, fast = {}, []
    for name in args.only:
        sizes = [n for n in (QUICK if args.quick else SERIES)[name] if n <= args.most]
        print(name, flush=True)
        if name == "images":
            rows = images(sizes, args, environment)
        elif name == "processes":
            rows = processes(sizes, args, environment)
        else:
            rows = steps(name, sizes, args, environment)
        fitted = slopes(rows)
        series[name] = {"points": rows, "slopes": fitted}
        for quantity, slope in fitted.items():
            print(f"  {quantity:12} {slope}", flush=True)
        fast += [f"{name}: {quantity}" for quantity in superlinear(fitted)]
    print(f"Worse than linear: {', '.join(fast) or 'nothing'}")
    report = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "device": args.device,
        "unfreeze": unfreeze.__version__,
        "worse_than_linear": fast,
        "series": series,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw(args.plot, series)


if __name__ == "__main__":
    main()
