"""Signals at random moments of real commands: exit codes, and resumes that are exact to the bit.

    python benchmarks/signals.py --moments 200 --json signals.json

`finetune` and `pretrain` of a tiny network, with and without workers, get INT, TERM, HUP or KILL at
a random moment of their life: the command itself, its whole process group, the process that started
it, or one of its workers. The same command then resumes, and is signalled again, until it ends by
itself. Every exit code has to be the one that is promised, and the model that comes out the one of
a run that nobody disturbed, bit by bit. Exit code 1 if anything was not so. Linux only.
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from unfreeze.runtime.runfolder import read_metrics

SIGNALS = ("INT", "TERM", "HUP", "KILL")
TARGETS = ("process", "group", "parent", "worker")
WORKERS = (0, 2)
SMALL = [
    *("--arch", "unfreeze/tiny", "--image-size", "16", "--batch-size", "8", "--device", "cpu"),
    *("--precision", "fp32", "--resume", "auto"),
]
VERBS = {
    "finetune": [*SMALL, "--weights", "none", "--epochs", "10", "--cache", "off"],
    "pretrain": [*SMALL, "--epochs", "5", "--nmb-prototypes", "12", "--tune", "off"],
}
PROMISED = {"INT": 130, "TERM": 130, "HUP": 130, "KILL": -signal.SIGKILL}
WORKER_LOST = 6
PATIENCE = 600.0  # seconds for one start, on a machine that has other work
SUBREAPER = 36  # prctl: children of a process that ended become ours
STARTER = """
import subprocess, sys
command = subprocess.Popen(sys.argv[1:])
print(command.pid, flush=True)
sys.exit(command.wait())
"""


def images(folder: Path) -> Path:
    """Small noisy images of two colours, as files: they are decoded in processes of their own."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            pixels = draw.integers(60, 120, (20, 22, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


class Command:
    """One start of a command, through a process that starts it, in a session of its own."""

    def __init__(self, verb: str, workers: int, data: Path, out: Path, log: Path) -> None:
        words = [sys.executable, "-m", "unfreeze", verb, str(data), "--out", str(out)]
        words += [*VERBS[verb], "--workers", str(workers)]
        self.log = log.open("ab")
        self.parent = subprocess.Popen(
            [sys.executable, "-c", STARTER, *words],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.pid = int(self.parent.stdout.readline())
        self.code: int | None = None
        self.began = time.monotonic()

    def ended(self) -> bool:
        """Whether the command has ended; its code is known then, whoever started it."""
        if self.code is None and self.parent.poll() is not None:
            with contextlib.suppress(ChildProcessError):  # it has another parent for a moment yet
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    self.code = os.waitstatus_to_exitcode(status)
                    return True
            if not Path(f"/proc/{self.pid}").exists():
                code = self.parent.returncode  # its parent told us, in a shell's way or its own
                self.code = code - 256 if code > 192 else code
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.005)
        return self.ended()

    def heeds(self) -> bool:
        """Whether it handles signals yet: before, the interpreter itself is starting."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
        return False

    def workers(self) -> list[int]:
        """Forked children: those that read images for the training."""
        found = []
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
            found = [n for n in found if Path(f"/proc/{n}/cmdline").read_bytes() == command]
        return found

    def signalled(self, name: str, target: str) -> str:
        """Sends it; which target it was, "" where there was none any more."""
        number = getattr(signal, f"SIG{name}")
        workers = self.workers() if target == "worker" else []
        if target == "worker" and not workers:
            target = "process"
        try:
            if target == "group":
                os.killpg(self.parent.pid, number)
            else:
                place = {"process": self.pid, "parent": self.parent.pid}
                os.kill(place[target] if target in place else random.choice(workers), number)
        except ProcessLookupError:
            return ""
        return target

    def close(self) -> None:
        """Nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.wait()
        self.parent.stdout.close()
        self.log.close()


def expected(name: str, target: str) -> set[int]:
    """Codes that are right; 0 is always: it may have ended before the signal came."""
    if target == "parent" or (target == "worker" and name != "KILL"):
        return {0}  # that is no business of the run's
    if target == "worker":
        return {0, WORKER_LOST}
    return {0, PROMISED[name]}


class Trial:
    """A run that is signalled and resumed until it ends by itself."""

    def __init__(self, verb: str, workers: int, data: Path, folder: Path, seconds: float) -> None:
        self.verb, self.workers, self.data, self.folder = verb, workers, data, folder
        self.seconds = seconds  # that an undisturbed run takes
        folder.mkdir()
        self.out, self.log = folder / "run", folder / "said.txt"
        self.moments: list[dict[str, object]] = []
        self.wrong: list[str] = []

    def command(self) -> Command:
        """The same command, once more."""
        return Command(self.verb, self.workers, self.data, self.out, self.log)

    def start(self, draw: random.Random, name: str, target: str) -> bool:
        """One start with one signal; whether the run is done."""
        command = self.command()
        try:
            while not command.heeds() and not command.wait(0.01):
                pass
            command.wait(draw.uniform(0, self.seconds))
            hit = "" if command.ended() else command.signalled(name, target)
            if not command.wait(PATIENCE):
                self.wrong.append(f"SIG{name} to {hit}: it did not end in {PATIENCE:.0f} s")
                return True
            if hit:
                self._note(name, hit, command.code)
            elif command.code:
                self.wrong.append(f"ended with {command.code} by itself")
            return command.code == 0 or bool(self.wrong)
        finally:
            command.close()

    def _note(self, name: str, target: str, code: int | None) -> None:
        steps = len(read_metrics(self.out)) if self.out.exists() else 0
        known = {"verb": self.verb, "workers": self.workers, "signal": name, "target": target}
        self.moments.append({**known, "code": code, "records": steps})
        if code not in expected(name, target):
            self.wrong.append(f"SIG{name} to {target}: exit code {code}")

    def compared(self, straight: Path) -> None:
        """Adds what differs from a run that nobody disturbed."""
        ours, theirs = (load_file(run / "model/model.safetensors") for run in (self.out, straight))
        if ours.keys() != theirs.keys() or any((ours[n] != theirs[n]).any() for n in theirs):
            self.wrong.append("the model is another one")
        for split in ("train", "val"):
            steps = [
                [line["step"] for line in read_metrics(run) if line["split"] == split]
                for run in (self.out, straight)
            ]
            if steps[0] != steps[1]:
                self.wrong.append(f"{split} records of other steps")
        self.wrong += [f"left behind: {path.name}" for path in self.out.rglob("*.tmp")]
        self.wrong += [f"left behind: {path.name}" for path in self.out.glob(".[lo]*")]


def straight(verb: str, workers: int, data: Path, folder: Path) -> tuple[Path, float]:
    """A run that nobody disturbs, and the seconds that it takes from where it heeds signals."""
    trial = Trial(verb, workers, data, folder, 0.0)
    command = trial.command()
    while not command.heeds():
        time.sleep(0.005)
    began = time.monotonic()
    whole = command.wait(PATIENCE) and command.code == 0
    command.close()
    if not whole:
        sys.exit(f"an undisturbed {verb} ended with {command.code}: {trial.log.read_text()}")
    return trial.out, time.monotonic() - began


def main() -> None:
    """A line for each run, and counts."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--moments", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--each", type=int, default=4, help="signals to one run, at most")
    ask.add_argument("--json")
    given = ask.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored by what is started
    draw, began = random.Random(given.seed), time.monotonic()
    ways = [
        way
        for way in itertools.product(VERBS, WORKERS, SIGNALS, TARGETS)
        if way[1] or way[3] != "worker"
    ]
    kinds = list(itertools.product(VERBS, WORKERS))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["UNFREEZE_CACHE"] = f"{scratch}/cache"
        data = images(Path(scratch) / "images")
        whole = {
            kind: straight(*kind, data, Path(scratch) / f"straight-{kind[0]}-{kind[1]}")
            for kind in kinds
        }
        trials, moments = list[Trial](), 0
        left: dict[tuple[str, int], list[tuple[str, str]]] = {kind: [] for kind in kinds}
        while moments < given.moments:
            kind = kinds[len(trials) % len(kinds)]
            folder = Path(scratch) / f"trial-{len(trials)}"
            trial = Trial(*kind, data, folder, whole[kind][1])
            done = False
            while not done and len(trial.moments) < min(given.each, given.moments - moments):
                if not left[kind]:  # every signal and target of a kind, in another order each time
                    left[kind] = [way[2:] for way in ways if way[:2] == kind]
                    draw.shuffle(left[kind])
                done = trial.start(draw, *left[kind].pop())
            if not done:
                last = trial.command()
                if not last.wait(PATIENCE) or last.code:
                    trial.wrong.append(f"ended with {last.code} by itself")
                last.close()
            if not trial.wrong:
                trial.compared(whole[kind][0])
            trials.append(trial)
            moments += len(trial.moments)
            codes = [f"{m['signal']} {m['target']}: {m['code']}" for m in trial.moments]
            print(f"{moments:4} {kind[0]} --workers {kind[1]}: {', '.join(codes)}", flush=True)
            for wrong in trial.wrong:
                print(f"     WRONG: {wrong}\n{trial.log.read_text()[-2000:]}", flush=True)
    every = [moment for trial in trials for moment in trial.moments]
    report = {
        "moments": len(every),
        "runs": len(trials),
        "seed": given.seed,
        "straight_seconds": {f"{v}, {w} workers": round(s, 1) for (v, w), (_, s) in whole.items()},
        "codes": dict(Counter(f"{m['signal']} {m['target']}: {m['code']}" for m in every)),
        "in_training": sum(bool(m["records"]) for m in every),
        "by_kind": dict(Counter(f"{m['verb']}, {m['workers']} workers" for m in every)),
        "equal_to_the_bit": sum(not trial.wrong for trial in trials),
        "wrong": [f"{trial.verb}: {wrong}" for trial in trials for wrong in trial.wrong],
        "each": every,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps({k: v for k, v in report.items() if k != "each"}, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
