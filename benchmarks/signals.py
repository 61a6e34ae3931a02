"""Send signals to real commands at random moments: exit codes, and bit-exact resume.

    python benchmarks/signals.py --moments 200 --json signals.json

`finetune` and `pretrain` of a tiny network, with and without workers, get INT, TERM, HUP or KILL at
a random moment. The signal goes to the command, its process group, its parent process or one of its
workers. The same command then resumes and is signalled again, until it ends without a signal. Every
exit code must be the documented one, and the final model must equal that of an uninterrupted run
bit for bit. Exits with code 1 otherwise. Linux only.
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

from unfreeze.runtime.run_folder import read_metrics

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
UNKNOWN = 999  # exit code that was lost with the parent process
PROMISED = {"INT": 130, "TERM": 130, "HUP": 130, "KILL": -signal.SIGKILL}
WORKER_LOST = 6
LANES = 2  # runs in parallel
COLD = 0.1  # share of starts in a new interpreter, imports included
Kind = tuple[str, int]  # verb and workers
PATIENCE = 600.0  # seconds for one start, on a busy machine
SUBREAPER = 36  # prctl option: orphaned processes become our children
# Forks each command from a process that has imported everything, through an intermediate parent.
# With "cold" it runs `python -m unfreeze` instead, so that signals can hit the imports, too.
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
    request = json.loads(line)
    between = os.fork()  # exits at once, so that the benchmark adopts the next process
    if between:
        os.waitpid(between, 0)
        continue
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # undo an inherited SIG_IGN of nohup
    reply = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate((quiet, log, log)):
        os.dup2(file, number)
    command = os.fork()
    if command:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(reply, f"{os.getpid()} {command}\\n".encode())
        os.close(reply)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) & 255)
    os.close(reply)
    if request["cold"]:
        os.execv(sys.executable, [sys.executable, "-m", "unfreeze", *request["words"]])
    sys.argv = ["unfreeze", *request["words"]]
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
            sys.exit("The process that starts commands failed.")

    def start(self, words: list[str], log: Path, cold: bool) -> tuple[int, int]:
        """Start a command; process ids of its parent and of the command."""
        log.touch()
        request = {"words": words, "log": str(log), "cold": cold}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        parent, command = self.process.stdout.readline().split()
        return int(parent), int(command)

    def close(self) -> None:
        """Stop the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def images(folder: Path) -> Path:
    """Write small noisy images of two classes as files, which are decoded in worker processes."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = draw.integers(60, 120, (20, 22, 3))
            pixels[..., channel] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


class Command:
    """One start of a command, with its own parent process and session."""

    def __init__(self, by: Starter, words: list[str], log: Path, cold: bool) -> None:
        self.parent, self.pid = by.start(words, log, cold)
        self.code: int | None = None
        self.parents: int | None = None

    def ended(self) -> bool:
        """Whether the command has ended; sets its exit code."""
        if self.parents is None:
            self.parents = _ended(self.parent)
        if self.code is None and self.parents is not None:
            self.code = _ended(self.pid)
            if self.code is None and not Path(f"/proc/{self.pid}").exists():
                code = self.parents  # passed on by its parent
                self.code = code - 256 if code > 192 else code
                if code < 0:  # the signal to the group ended the parent after it had reaped it
                    self.code = UNKNOWN
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`; whether the command has ended."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.005)
        return self.ended()

    def handles_signals(self) -> bool:
        """Whether its signal handlers are installed: not while the interpreter is starting."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
        return False

    def workers(self) -> list[int]:
        """Process ids of its DataLoader workers (forked children)."""
        pids = []
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
            pids = [n for n in pids if Path(f"/proc/{n}/cmdline").read_bytes() == command]
        return pids

    def signalled(self, name: str, target: str) -> str:
        """Send a signal; returns the target that got it, "" if it had ended."""
        number = getattr(signal, f"SIG{name}")
        workers = self.workers() if target == "worker" else []
        if target == "worker" and not workers:
            target = "process"
        try:
            if target == "group":
                os.killpg(self.parent, number)
            else:
                pids = {"process": self.pid, "parent": self.parent}
                os.kill(pids[target] if target in pids else random.choice(workers), number)
        except ProcessLookupError:
            return ""
        return target

    def close(self) -> None:
        """Kill and reap all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.parent, signal.SIGKILL)
        for pid in (self.parent, self.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _ended(pid: int) -> int | None:
    """The exit code of a finished child; None while it runs or is not (yet) our child."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    return None


def expected(name: str, target: str, code: int | None) -> set[int]:
    """Allowed exit codes; 0 is always allowed: the run may end before the signal arrives."""
    if code == UNKNOWN:
        return {UNKNOWN} if target == "group" else set()
    if target == "parent" or (target == "worker" and name != "KILL"):
        return {0}  # must not affect the run
    if target == "worker":
        return {0, WORKER_LOST}
    return {0, PROMISED[name]}


class Trial:
    """A run that is signalled and resumed until it ends without a signal."""

    def __init__(self, by: Starter, verb: str, workers: int, folder: Path) -> None:
        self.by, self.verb, self.workers, self.folder = by, verb, workers, folder
        folder.mkdir()
        self.out, self.log = folder / "run", folder / "log.txt"
        self.moments: list[dict[str, object]] = []
        self.wrong: list[str] = []

    def command(self, cold: bool = False) -> Command:
        """Start the command once more."""
        words = [self.verb, str(self.folder.parent / "images"), "--out", str(self.out)]
        words += [*VERBS[self.verb], "--workers", str(self.workers)]
        return Command(self.by, words, self.log, cold)

    def start(self, wait: float, name: str, target: str, cold: bool) -> bool:
        """One start with one signal after `wait` seconds; whether the run is finished."""
        command = self.command(cold)
        try:
            while not command.handles_signals() and not command.wait(0.01):
                pass
            command.wait(wait)
            hit = "" if command.ended() else command.signalled(name, target)
            if not command.wait(PATIENCE):
                self.wrong.append(f"SIG{name} to {hit}: no exit within {PATIENCE:.0f} s")
                return True
            if hit:
                self._note(name, hit, command.code, cold)
            elif command.code:
                self.wrong.append(f"exit code {command.code} without a signal")
            return command.code == 0 or bool(self.wrong)
        finally:
            command.close()

    def finish(self, cold: bool = False) -> float:
        """Run the command to its end without a signal; its seconds."""
        command, began = self.command(cold), time.monotonic()
        if not command.wait(PATIENCE) or command.code:
            self.wrong.append(f"exit code {command.code} without a signal")
        command.close()
        return time.monotonic() - began

    def _note(self, name: str, target: str, code: int | None, cold: bool) -> None:
        steps = len(read_metrics(self.out)) if self.out.exists() else 0
        known = {"verb": self.verb, "workers": self.workers, "signal": name, "target": target}
        self.moments.append({**known, "code": code, "cold": cold, "records": steps})
        if code not in expected(name, target, code):
            self.wrong.append(f"SIG{name} to {target}: exit code {code}")

    def compared(self, straight: Path) -> None:
        """Compare with an uninterrupted run; adds the differences to `wrong`."""
        ours, theirs = (load_file(run / "model/model.safetensors") for run in (self.out, straight))
        if ours.keys() != theirs.keys() or any((ours[n] != theirs[n]).any() for n in theirs):
            self.wrong.append("the model differs")
        for split in ("train", "val"):
            steps = [
                [line["step"] for line in read_metrics(run) if line["split"] == split]
                for run in (self.out, straight)
            ]
            if steps[0] != steps[1]:
                self.wrong.append(f"the {split} records have other steps")
        self.wrong += [
            f"temporary file left behind: {path.name}" for path in self.out.rglob("*.tmp")
        ]
        self.wrong += [
            f"temporary file left behind: {path.name}" for path in self.out.glob(".[lo]*")
        ]


class Straight(NamedTuple):
    """An uninterrupted run: its folder and its seconds."""

    out: Path
    seconds: float

    @classmethod
    def of(cls, by: Starter, verb: str, workers: int, folder: Path, cold: bool) -> "Straight":
        """Run it."""
        trial = Trial(by, verb, workers, folder)
        seconds = trial.finish(cold)
        if trial.wrong:
            sys.exit(f"An uninterrupted {verb} failed: {trial.wrong[0]}: {trial.log.read_text()}")
        return cls(trial.out, seconds)


class Lane:
    """A sequence of trials; several lanes run in parallel."""

    def __init__(
        self, number: int, args: argparse.Namespace, whole: dict[Kind, Straight], cold: float
    ) -> None:
        self.number, self.each, self.whole, self.cold = number, args.each, whole, cold
        self.moments = args.moments // LANES + (number < args.moments % LANES)
        self.draw, self.by = random.Random(f"{args.seed} {number}"), Starter()
        self.kinds = list(whole)[number:] + list(whole)[:number]
        self.left: dict[Kind, list[tuple[str, str]]] = {kind: [] for kind in whole}
        self.trials: list[Trial] = []

    def run(self, folder: Path) -> list[Trial]:
        """Run the trials."""
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
            if not self.left[kind]:  # every signal and target, in random order
                targets = TARGETS if kind[1] else TARGETS[:-1]
                self.left[kind] = list(itertools.product(SIGNALS, targets))
                self.draw.shuffle(self.left[kind])
            cold = self.draw.random() < COLD
            seconds = self.draw.uniform(0, self.whole[kind].seconds + (self.cold if cold else 0))
            if trial.start(seconds, *self.left[kind].pop(), cold):
                return
        trial.finish()


def main() -> None:
    """Run all trials; print one line for each and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=4, help="maximum number of signals per run")
    parser.add_argument("--json")
    args = parser.parse_args()
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
        lanes = [Lane(number, args, whole, max(0.0, cold)) for number in range(LANES)]
        with ThreadPoolExecutor(LANES) as pool:
            trials = list(itertools.chain(*pool.map(lambda lane: lane.run(folder), lanes)))
    every = [moment for trial in trials for moment in trial.moments]
    report = {
        "moments": len(every),
        "runs": len(trials),
        "seed": args.seed,
        "straight_seconds": {
            f"{verb}, {workers} workers": round(straight.seconds, 1)
            for (verb, workers), straight in whole.items()
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
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
