"""Speed of another checkout beside this one, both at once on one core.

    git worktree add ../old COMMIT
    python benchmarks/old_new.py --old ../old --photographs jpegs/ --archive cifar10.zip

Runs a benchmark of both checkouts at the same time, each from its own tree with its own package on
PYTHONPATH, both bound to core 0: they share it evenly, so that other programs and changes of clock
speed slow both alike. Prints for each figure the median over rounds of new seconds by old seconds,
and the smallest and largest: below 1 this checkout is faster. `startup` counts CPU seconds of whole
processes, the others what the benchmark reports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU = ("--device", "cpu")
TINY = ("--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "1", "--limit", "32")
FROZEN = [
    *("--share", "0.02", "--epochs", "30", "--arch", "resnet18"),
    *("--plain-epochs", "1", "--threads", "1"),
]
COMMANDS = {
    "--help": ["--help"],
    "finetune --help": ["finetune", "--help"],
    "scan": ["scan", "digits"],
    "pretrain --dry-run": ["pretrain", "digits", "--dry-run", *CPU],
    "finetune, one step": ["finetune", "digits", *TINY, "--val", "0", *CPU, "--out", "run"],
}


def arguments(s: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of each benchmark, short enough for many rounds."""
    images = ("--images", s.photographs)
    return {
        "step": ["--rounds", "2", "--threads", "1", "--cases", *s.cases],
        "views": [*images, "--rounds", "3", "--count", "32"],
        "end_to_end": [*images, "--rounds", "1", "--count", "32", "--peer", "plain"],
        "frozen": ["--archive", s.archive, *FROZEN],
        "startup": [],
        "growth": ["--only", "images", "--most", "1e5", "--starts", "1"],
    }


def seconds(benchmark: str, report: Any) -> dict[str, float]:
    """The seconds of our own ways in a benchmark's report, by name."""
    if benchmark == "step":
        return {name: 1 / case["ours"] for name, case in report["cases"].items()}
    if benchmark == "views":
        ways = list(report["ways"].values())[1:4]
        names = ("float32", "uint8", "uint8, cached images")
        return {n: 1 / way["images_per_second"] for n, way in zip(names, ways, strict=True)}
    if benchmark == "end_to_end":
        median = report["median"]
        return {"second per image": 1 / median["ours"], "CPU second per image": median["ours_cpu"]}
    if benchmark == "frozen":
        figures = list(report["figures"].items())
        kept = {name: value for name, value in figures if name.startswith(("kept", "cached"))}
        return {"whole run, cached": next(v for n, v in kept.items() if n.endswith("whole"))}
    last = report["series"]["images"]["points"][-1]
    return {f"1e5 images, {name}": last[name] for name in ("index", "warm", "cold")}


def main() -> None:
    """Run the pairs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="the other checkout")
    parser.add_argument("--photographs", required=True, help="folder of JPEG files")
    parser.add_argument("--archive", required=True, help="archive of CIFAR-10")
    parser.add_argument("--cases", nargs="+", default=["resnet18, 2x224 + 6x96"])
    parser.add_argument("--only", nargs="+", help="benchmarks to run (all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="file for the results")
    s = parser.parse_args()
    s.photographs, s.archive = (str(Path(p).resolve()) for p in (s.photographs, s.archive))
    trees = {"old": s.old.resolve(), "new": ROOT}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(s.rounds):
        for benchmark, extra in arguments(s).items():
            if s.only and benchmark not in s.only:
                continue
            if benchmark == "startup":
                found = {f"CPU, {name}": cpu_seconds(trees, COMMANDS[name]) for name in COMMANDS}
            else:
                found = reported(trees, benchmark, extra)
            for figure, pair in found.items():
                pairs.setdefault(f"{benchmark}: {figure}", []).append(pair)
        for figure, times in pairs.items():
            ratios = [new / old for old, new in times]
            low, high = min(ratios), max(ratios)
            middle = statistics.median(ratios)
            print(f"{figure:45} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
        if s.json:
            Path(s.json).write_text(json.dumps(pairs, indent=1) + "\n")


def environment(tree: Path, cache: Path) -> dict[str, str]:
    """The environment that takes the package of a checkout."""
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "UNFREEZE_CACHE": str(cache)}


def reported(
    trees: dict[str, Path], benchmark: str, extra: list[str]
) -> dict[str, tuple[float, float]]:
    """(old, new) seconds of each figure of a benchmark, run by both checkouts at once."""
    with tempfile.TemporaryDirectory() as scratch:
        running, reports = {}, {}
        for name, tree in trees.items():
            reports[name] = Path(scratch) / f"{name}.json"
            command = [sys.executable, f"benchmarks/{benchmark}.py", *extra]
            running[name] = subprocess.Popen(
                ["taskset", "-c", "0", *command, "--json", str(reports[name])],
                cwd=tree,
                env=environment(tree, Path(scratch) / name),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        errors = {name: process.communicate()[1] for name, process in running.items()}
        for name, process in running.items():
            if process.returncode:
                raise SystemExit(f"{benchmark} of {trees[name]} failed:\n{errors[name][-2000:]}")
        old, new = (seconds(benchmark, json.loads(reports[n].read_text())) for n in ("old", "new"))
        return {figure: (old[figure], new[figure]) for figure in old}


def cpu_seconds(trees: dict[str, Path], arguments: list[str]) -> tuple[float, float]:
    """(old, new) CPU seconds of a command, run by both checkouts at once."""
    with tempfile.TemporaryDirectory() as scratch:
        running = {
            name: subprocess.Popen(
                ["taskset", "-c", "0", sys.executable, "-m", "unfreeze", *arguments],
                cwd=tempfile.mkdtemp(dir=scratch),
                env=environment(tree, Path(scratch) / "cache" / name),
                stdout=subprocess.DEVNULL,
            )
            for name, tree in trees.items()
        }
        used = {}
        for name, process in running.items():
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"unfreeze {' '.join(arguments)} failed in {trees[name]}.")
            used[name] = usage.ru_utime + usage.ru_stime
        return used["old"], used["new"]


if __name__ == "__main__":
    main()
