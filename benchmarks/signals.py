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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
    "finetune": [*SMALL, "--weights", "none", "--epochs", "5", "--cache", "off"],
    "pretrain": [*SMALL, "--epochs", "3", "--nmb-prototypes", "12", "--tune", "off"],
}
PROMISED = {"INT": 130, "TERM": 130, "HUP": 130, "KILL": -signal.SIGKILL}
WORKER_LOST = 6
LANES = 2  # runs at once
COLD = 0.1  # share of starts that import everything
Kind = tuple[str, int]  # verb and workers
PATIENCE = 600.0  # seconds for one start, on a machine that has other work
SUBREAPER = 36  # prctl: children of a process that ended become ours
# Starts commands by forking, each through a process that starts it: the imports are there already.
# `python -m unfreeze` itself runs where "cold" is said; what it imports is signalled then, too.
STARTER = """
import json, os, pkgutil, runpy, signal, sys
import torch, torchvision, timm
import unfreeze
for module in pkgutil.walk_packages(unfreeze.__path__, "unfreeze."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
for line in sys.stdin:
    told = json.loads(line)
    between = os.fork()  # ends at once: the next one's parent is the benchmark
    if between:
        os.waitpid(between, 0)
        continue
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's would be inherited
    answers = os.dup(1)
    quiet, log = os.open(os.devnull, os.O_RDONLY), os.open(told["log"], os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate((quiet, log, log)):
        os.dup2(file, number)
    command = os.fork()
    if command:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(answers, f"{os.getpid()} {command}\\n".encode())
        os.close(answers)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) & 255)
    os.close(answers)
    if told["cold"]:
        os.execv(sys.executable, [sys.executable, "-m", "unfreeze", *told["words"]])
    sys.argv = ["unfreeze", *told["words"]]
    runpy.run_module("unfreeze", run_name="__main__", alter_sys=True)
    sys.exit(0)
"""


class Starter:
    """The process that starts commands."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if self.process.stdout.readline() != "ready\n":
            sys.exit("commands cannot be started")

    def start(self, words: list[str], log: Path, cold: bool) -> tuple[int, int]:
        """Process ids of a command's parent and of the command."""
        log.touch()
        told = {"words": words, "log": str(log), "cold": cold}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        parent, command = self.process.stdout.readline().split()
        return int(parent), int(command)

    def close(self) -> None:
        """It ends."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def images(folder: Path) -> Path:
    """Small noisy images of two colours, as files: they are decoded in processes of their own."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = draw.integers(60, 120, (20, 22, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


class Command:
    """One start of a command, through a process that starts it, in a session of its own."""

    def __init__(self, by: Starter, words: list[str], log: Path, cold: bool) -> None:
        self.parent, self.pid = by.start(words, log, cold)
        self.code: int | None = None
        self.parents: int | None = None

    def ended(self) -> bool:
        """Whether the command has ended; its code is known then, whoever started it."""
        if self.parents is None:
            self.parents = _ended(self.parent)
        if self.code is None and self.parents is not None:
            self.code = _ended(self.pid)
            if self.code is None and not Path(f"/proc/{self.pid}").exists():
                code = self.parents  # its parent told us
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
                os.killpg(self.parent, number)
            else:
                place = {"process": self.pid, "parent": self.parent}
                os.kill(place[target] if target in place else random.choice(workers), number)
        except ProcessLookupError:
            return ""
        return target

    def close(self) -> None:
        """Nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.parent, signal.SIGKILL)
        for pid in (self.parent, self.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _ended(pid: int) -> int | None:
    """The exit code of a child that has ended; None for one that lives or is not ours (yet)."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    return None


def expected(name: str, target: str) -> set[int]:
    """Codes that are right; 0 is always: it may have ended before the signal came."""
    if target == "parent" or (target == "worker" and name != "KILL"):
        return {0}  # that is no business of the run's
    if target == "worker":
        return {0, WORKER_LOST}
    return {0, PROMISED[name]}


class Trial:
    """A run that is signalled and resumed until it ends by itself."""

    def __init__(self, by: Starter, verb: str, workers: int, folder: Path) -> None:
        self.by, self.verb, self.workers, self.folder = by, verb, workers, folder
        folder.mkdir()
        self.out, self.log = folder / "run", folder / "said.txt"
        self.moments: list[dict[str, object]] = []
        self.wrong: list[str] = []

    def command(self, cold: bool = False) -> Command:
        """The same command, once more."""
        words = [self.verb, str(self.folder.parent / "images"), "--out", str(self.out)]
        words += [*VERBS[self.verb], "--workers", str(self.workers)]
        return Command(self.by, words, self.log, cold)

    def start(self, wait: float, name: str, target: str, cold: bool) -> bool:
        """One start with one signal after `wait` seconds of work; whether the run is done."""
        command = self.command(cold)
        try:
            while not command.heeds() and not command.wait(0.01):
                pass
            command.wait(wait)
            hit = "" if command.ended() else command.signalled(name, target)
            if not command.wait(PATIENCE):
                self.wrong.append(f"SIG{name} to {hit}: it did not end in {PATIENCE:.0f} s")
                return True
            if hit:
                self._note(name, hit, command.code, cold)
            elif command.code:
                self.wrong.append(f"ended with {command.code} by itself")
            return command.code == 0 or bool(self.wrong)
        finally:
            command.close()

    def finish(self, cold: bool = False) -> float:
        """The same command without a signal; the seconds that it takes."""
        command, began = self.command(cold), time.monotonic()
        if not command.wait(PATIENCE) or command.code:
            self.wrong.append(f"ended with {command.code} by itself")
        command.close()
        return time.monotonic() - began

    def _note(self, name: str, target: str, code: int | None, cold: bool) -> None:
        steps = len(read_metrics(self.out)) if self.out.exists() else 0
        known = {"verb": self.verb, "workers": self.workers, "signal": name, "target": target}
        self.moments.append({**known, "code": code, "cold": cold, "records": steps})
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


class Straight(NamedTuple):
    """A run that nobody disturbs: its folder, and seconds that it takes."""

    out: Path
    seconds: float

    @classmethod
    def of(cls, by: Starter, verb: str, workers: int, folder: Path, cold: bool) -> "Straight":
        """It is made."""
        trial = Trial(by, verb, workers, folder)
        seconds = trial.finish(cold)
        if trial.wrong:
            sys.exit(f"an undisturbed {verb} {trial.wrong[0]}: {trial.log.read_text()}")
        return cls(trial.out, seconds)


class Lane:
    """Trials one after the other; several lanes run at once."""

    def __init__(
        self, number: int, given: argparse.Namespace, whole: dict[Kind, Straight], cold: float
    ) -> None:
        self.number, self.each, self.whole, self.cold = number, given.each, whole, cold
        self.moments = given.moments // LANES + (number < given.moments % LANES)
        self.draw, self.by = random.Random(f"{given.seed} {number}"), Starter()
        self.kinds = list(whole)[number:] + list(whole)[:number]
        self.left: dict[Kind, list[tuple[str, str]]] = {kind: [] for kind in whole}
        self.trials: list[Trial] = []

    def run(self, folder: Path) -> list[Trial]:
        """All of them."""
        done = 0
        while done < self.moments:
            name = f"trial-{self.number}-{len(self.trials)}"
            kind = self.kinds[len(self.trials) % len(self.kinds)]
            trial = Trial(self.by, *kind, folder / name)
            self._signalled(trial, kind, min(self.each, self.moments - done))
            if not trial.wrong:
                trial.compared(self.whole[kind].out)
            self.trials.append(trial)
            done += len(trial.moments)
            codes = [f"{m['signal']} {m['target']}: {m['code']}" for m in trial.moments]
            lines = [f"{done:4} {kind[0]} --workers {kind[1]}: {', '.join(codes)}"]
            lines += [
                f"     WRONG: {wrong}\n{trial.log.read_text()[-3000:]}" for wrong in trial.wrong
            ]
            print("\n".join(lines), flush=True)
        self.by.close()
        return self.trials

    def _signalled(self, trial: Trial, kind: Kind, most: int) -> None:
        while len(trial.moments) < most:
            if not self.left[kind]:  # every signal and target, in another order each time
                targets = TARGETS if kind[1] else TARGETS[:-1]
                self.left[kind] = list(itertools.product(SIGNALS, targets))
                self.draw.shuffle(self.left[kind])
            cold = self.draw.random() < COLD
            seconds = self.draw.uniform(0, self.whole[kind].seconds + (self.cold if cold else 0))
            if trial.start(seconds, *self.left[kind].pop(), cold):
                return
        trial.finish()


def main() -> None:
    """A line for each run, and counts."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--moments", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--each", type=int, default=4, help="signals to one run, at most")
    ask.add_argument("--json")
    given = ask.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["UNFREEZE_CACHE"] = f"{scratch}/cache"
        folder, by = Path(scratch), Starter()
        images(folder / "images")
        whole = {
            kind: Straight.of(by, *kind, folder / f"straight-{kind[0]}-{kind[1]}", False)
            for kind in itertools.product(VERBS, WORKERS)
        }
        kind = next(iter(whole))
        cold = Straight.of(by, *kind, folder / "cold", True).seconds - whole[kind].seconds
        by.close()
        lanes = [Lane(number, given, whole, max(0.0, cold)) for number in range(LANES)]
        with ThreadPoolExecutor(LANES) as pool:
            trials = list(itertools.chain(*pool.map(lambda lane: lane.run(folder), lanes)))
    every = [moment for trial in trials for moment in trial.moments]
    report = {
        "moments": len(every),
        "runs": len(trials),
        "seed": given.seed,
        "straight_seconds": {
            f"{verb}, {workers} workers": round(one.seconds, 1)
            for (verb, workers), one in whole.items()
        },
        "import_seconds": round(cold, 1),
        "codes": dict(
            sorted(Counter(f"{m['signal']} {m['target']}: {m['code']}" for m in every).items())
        ),
        "with_records": sum(bool(m["records"]) for m in every),
        "with_imports": sum(bool(m["cold"]) for m in every),
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
