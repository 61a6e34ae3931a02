"""Time and memory as data and settings grow: images, processes, crops, prototypes, the queue.

    python benchmarks/growth.py --json growth.json --plot growth.png
    python benchmarks/growth.py --only images --most 1e6 --json growth.json

`images`: seconds from the call of `pretrain` to the end of its first step, on a zip of JPEG files
of 8x8 pixels in 1,000 class folders: `cold`, where nothing is known of it, and `warm`, where every
file was checked by an earlier run (`--store off`, as for images that do not fit); `processor` is
of the warm start, `index` of listing alone, both in the processor's seconds. The others are
seconds of a training step of a small network at 16 pixels, 2 views a image, batch 64, K 300, no
queue, of which one is varied; on a CPU the processor's own, which others that use it change little.
`processes` share a batch of 256; there `processor` is the first one's, `seconds` the clock's, and
memory that they share (libraries) counts once.

Each point is measured in a process of its own, so that its memory (the most it ever had) is its
own. Seconds are the fastest of some rounds: other programs only ever add to them. `exponent` is the
slope of the line through all points in logarithms, `last` through the last three, where what grows
is largest beside what does not: 1 is linear. `each` is what one more image, prototype … costs
between the last two.
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
NAMES = {"images": "images", "crops": "views a image", "queue": "features in the queue"}
LINEAR = 1.1  # an exponent up to here is called linear: points are measured
HERE = Path(__file__).parent
Rows = list[dict[str, Any]]


def archive(path: Path, count: int) -> Path:
    """A zip of `count` tiny JPEG files, stored."""
    draw, images = np.random.default_rng(0), []
    for _ in range(64):
        held = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(held, "JPEG", quality=50)
        images.append(held.getvalue())
    with zipfile.ZipFile(path, "w") as members:
        for number in range(count):
            name = f"class{number % 1000:04}/image{number:08}.jpg"
            members.writestr(zipfile.ZipInfo(name), images[number % len(images)])
    return path


def measured(asked: dict[str, Any], environment: dict[str, str], world: int = 1) -> Rows:
    """What `growing.py` finds in each of `world` new processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(world):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
        launch |= {"TORCHELASTIC_RUN_ID": "growth", **{name: str(v) for name, v in own.items()}}
        started.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "growing.py"), json.dumps(asked)],
                env={**os.environ, **environment, **(launch if world > 1 else {})},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"A point could not be measured: {asked}")
    return [json.loads(text.splitlines()[-1]) for text in told]


def images(sizes: list[int], given: argparse.Namespace, environment: dict[str, str]) -> Rows:
    """Cold and warm starts."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=given.scratch) as place:
            data = archive(Path(place) / "images.zip", size)
            own = {**environment, "UNFREEZE_CACHE": place}
            asked = {"what": "start", "data": str(data), "device": given.device}
            cold = measured(asked, own)[0]
            warm = [measured(asked, own)[0] for _ in range(given.starts)]
            best = min(warm, key=lambda row: row["seconds"])
        least = {name: min(row[name] for row in warm) for name in ("index", "processor")}
        row = {"n": size, **least, "warm": best["seconds"], "cold": cold["seconds"]}
        rows.append({**row, "cold mib": cold["mib"], "mib": best["mib"]})
        print(rows[-1], flush=True)
    return rows


def processes(sizes: list[int], given: argparse.Namespace, environment: dict[str, str]) -> Rows:
    """One run by several processes: the same batch, shared."""
    rows = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as place:
        data = archive(Path(place) / "images.zip", 256 if given.quick else 4_096)
        for size in sizes:
            asked = {"what": "processes", "data": str(data), "device": given.device}
            found = measured(asked, {**environment, "UNFREEZE_CACHE": place}, size)
            mib = [row["mib"] - row["shared"] for row in found]
            told = {name: found[0][name] for name in ("seconds", "processor")}
            rows.append({"n": size, **told, "mib": round(sum(mib), 1)})
            print(rows[-1], flush=True)
    return rows


def steps(
    name: str, sizes: list[int], given: argparse.Namespace, environment: dict[str, str]
) -> Rows:
    """A training step for each size of one setting."""
    rows = []
    for size in sizes:
        asked = {"what": "step", "rounds": given.rounds, "device": given.device, name: size}
        rows.append({"n": size, **measured(asked, environment)[0]})
        print(rows[-1], flush=True)
    return rows


def slopes(rows: Rows) -> dict[str, dict[str, float]]:
    """Of each measured quantity: `exponent`, `last` and `each`, as the first lines say."""
    n = [row["n"] for row in rows]
    found = {}
    for name in rows[0]:
        y = [row[name] for row in rows]
        if name == "n" or min(y) <= 0:
            continue
        fitted, last = _slope(n, y), _slope(n[-3:], y[-3:])
        each = (y[-1] - y[-2]) / (n[-1] - n[-2])
        found[name] = {"exponent": round(fitted, 3), "last": round(last, 3)}
        found[name]["each"] = float(f"{each:.3g}")
    return found


def _slope(n: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(n), np.log(y), 1)[0])


def superlinear(found: dict[str, dict[str, float]]) -> list[str]:
    """What grows faster than linearly."""
    return [name for name, s in found.items() if max(s["exponent"], s["last"]) > LINEAR]


def draw(path: str, series: dict[str, Any]) -> None:
    """Seconds above, memory below, a column a series; both axes logarithmic, with a line of 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(series), 7), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(series), squeeze=False)
    for column, (name, of) in enumerate(series.items()):
        rows, found = of["points"], of["slopes"]
        n = [row["n"] for row in rows]
        for axes, memory in ((grid[0][column], False), (grid[1][column], True)):
            drawn = [q for q in found if q.endswith("mib") == memory]
            for quantity in drawn:
                told = f"{quantity}, at the end n^{found[quantity]['last']:.2f}"
                axes.loglog(n, [row[quantity] for row in rows], "o-", markersize=4, label=told)
            most = max(row[quantity] for row in rows for quantity in drawn)
            axes.loglog(n, [most * x / n[-1] for x in n], ":", color="#7a7a7a", label="linear")
            least = min(row[quantity] for row in rows for quantity in drawn)
            axes.set_ylim(least / 2, most * 2)
            axes.set_xticks(n, [_short(x) for x in n])
            axes.set_xticks([], minor=True)
            axes.set_xlabel(NAMES.get(name, name))
            axes.set_ylabel("MiB, the most" if memory else "seconds")
            axes.legend(fontsize=8, frameon=False)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        grid[0][column].set_title(name, loc="left", fontsize=11)
    figure.savefig(path)


def _short(n: int) -> str:
    return f"{n // 1000:,}k" if n >= 10_000 else f"{n:,}"


def main() -> None:
    """A line for each point, then the slopes."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    ask.add_argument("--most", type=float, default=math.inf, help="leave larger sizes out")
    ask.add_argument("--rounds", type=int, default=9, help="steps of a point")
    ask.add_argument("--starts", type=int, default=3, help="warm starts of a point")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--scratch", help="folder for the archives (0.8 GB for 1e6 images)")
    ask.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    ask.add_argument("--json")
    ask.add_argument("--plot")
    given = ask.parse_args()
    environment = {"OMP_NUM_THREADS": str(given.threads)}
    series, fast = {}, []
    for name in given.only:
        sizes = [n for n in (QUICK if given.quick else SERIES)[name] if n <= given.most]
        print(name, flush=True)
        if name == "images":
            rows = images(sizes, given, environment)
        elif name == "processes":
            rows = processes(sizes, given, environment)
        else:
            rows = steps(name, sizes, given, environment)
        found = slopes(rows)
        series[name] = {"points": rows, "slopes": found}
        for quantity, slope in found.items():
            print(f"  {quantity:12} {slope}", flush=True)
        fast += [f"{name}: {quantity}" for quantity in superlinear(found)]
    print(f"Worse than linear: {', '.join(fast) or 'nothing'}")
    report = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": given.threads,
        "device": given.device,
        "unfreeze": unfreeze.__version__,
        "worse_than_linear": fast,
        "series": series,
    }
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        draw(given.plot, series)


if __name__ == "__main__":
    main()
