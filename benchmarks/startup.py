"""Start-up time of commands that have next to nothing to do.

    python benchmarks/startup.py --json startup.json

Measures `--help`, `pretrain digits --dry-run`, one step of `finetune` and a cached `scan`, and the
import time of each. Medians of `--rounds` after one warm-up round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import unfreeze
from drawing import draw_rounds

STEP = [
    *("--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "1", "--limit", "32"),
    *("--batch-size", "32", "--val", "0", "--device", "cpu", "--overwrite"),
]
IMPORTS = {
    "--help": "import unfreeze.cli.main",
    "pretrain --dry-run": "import unfreeze.commands.pretrain",
    "finetune, one step": "import unfreeze.commands.finetune, unfreeze.reports.page, "
    "matplotlib.figure",
    "scan, all known": "import unfreeze.commands.scan",
}


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Run all commands and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    python, rows = sys.executable, {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNFREEZE_CACHE"] = str(Path(folder) / "cache")
        run = [python, "-m", "unfreeze"]
        commands = {
            "--help": [*run, "--help"],
            "pretrain --dry-run": [*run, "pretrain", "digits", "--dry-run", "--device", "cpu"],
            "finetune, one step": [*run, "finetune", "digits", "--out", f"{folder}/run", *STEP],
            "scan, all known": [*run, "scan", "digits"],
        }
        for name, command in commands.items():
            took = [seconds(command) for _ in range(args.rounds + 1)][1:]
            bare = [seconds([python, "-c", IMPORTS[name]]) for _ in range(args.rounds + 1)][1:]
            rows[name] = {
                "seconds": round(statistics.median(took), 2),
                "slowest": round(max(took), 2),
                "imports": round(statistics.median(bare), 2),
                "rounds": {"command": took, "imports": bare},
            }
            shown = {k: v for k, v in rows[name].items() if k != "rounds"}
            print(f"{name:20} {shown}", flush=True)
    report = {
        "processor": platform.processor() or platform.machine(),
        "unfreeze": unfreeze.__version__,
        "commands": rows,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        draw_rounds(args.plot, {name: row["rounds"] for name, row in rows.items()}, "s")


if __name__ == "__main__":
    main()
