"""Fuzz file, class and folder names: no command crashes, writes elsewhere or alters a name.

    python benchmarks/names.py --rounds 40 --seed 0 --json names.json

Each round draws random names (invalid UTF-8, emoji, line breaks, quotes, reserved words, 255 bytes)
for a dataset, its classes and files, a run and all outputs, and calls every command in this
process. Run it in another locale as well: LC_ALL=C PYTHONUTF8=0 python benchmarks/names.py.
"""

# names are bytes, and paths are joined as bytes
# ruff: noqa: PTH103, PTH118, PTH120, PTH123

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unfreeze.cli.main import main as command
from unfreeze.runtime.terminal import Environment
from unfreeze.text import as_text, path_argument, text_of


def _long(unit: str) -> bytes:
    raw = unit.encode()
    return raw * (250 // len(raw))


KINDS: dict[str, list[bytes]] = {
    "no text": [b"caf\xe9", b"\xff\xfe", b"a\x80b", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf0\x9f\x90"],
    "like our escapes": [rb"caf\xe9", rb"a\x5cb", rb"\x5cx5c", rb"\xff", rb"\\xe9", rb"\n", rb"\0"],
    "letters": ["é".encode(), "é".encode(), "고양이".encode(), "ß ſ".encode(), "İı".encode()],
    "signs": [
        "🐶".encode(),
        "👩‍👩‍👧".encode(),
        "a\u202eb".encode(),
        "\ufeffa".encode(),
        "\u3000a".encode(),
    ],
    "lines": [b"a\nb", b"a\rb", b"a\r\nb", b"\nb", "a\u2028b".encode(), "a\x85b".encode()],
    "control": [b"a\x1b[2Jb", b"\x07", b"a\tb", b"\x7f", b"\x01a", b"a\x0bb\x0c"],
    "quotes": [b'"', b"'", b"a\"b'c`", b'""', b'"a,b"', b"'''", b'"""', b"\\", b"a\\"],
    "spaces": [b" a", b"a ", b" ", b"a  b", b"a.", b"a..b", b"a .b"],
    "signs of tables": [b",", b"a,b", b";", b"a;b", b"|", b"=1+1", b"@a", b"#", b"-1", b"+1"],
    "signs of shells": [b"-x", b"--help", b"$HOME", b"`id`", b"$(id)", b"*", b"a?", b"{a,b}", b"&"],
    "signs of pages": [b"<script>alert(1)<script>", b"{{ 7*7 }}", b"{% x %}", b"&amp;", b"%s %d"],
    "signs of addresses": [b"a:b", b"C:", b"http:", b"a?b=c", b"a#b", b"%41", b"a@b", b"s3:"],
    "words": [b"auto", b"none", b"null", b"nan", b"true", b"NaN", b"path", b"label", b"all", b"0"],
    "words of ours": [b"digits", b"imagenet", b"model", b"checkpoints", b"config.toml", b"run"],
    "reserved": [b"CON", b"nul", b"aux.txt", b"COM1", b"con.png", b"~", b"~root", b"con "],
    "long": [_long("x"), _long("é"), _long("🐶"), _long("ab ")],
}
FORMS = ("folder", "splits", "zip", "tar", "list")
QUICK = ["--arch", "unfreeze/tiny", "--image-size", "16", "--device", "cpu", "--workers", "0"]
EACH = 5  # images per class


class Failure(Exception):
    """A check failed."""


class Round:
    """Random names and a dataset with these names below `root`."""

    def __init__(self, root: Path, seed: int, kinds: dict[str, list[bytes]] = KINDS) -> None:
        self.root, self.kinds = root, kinds
        self.draw = np.random.default_rng(seed)
        self.used: Counter[str] = Counter()
        self.placed: set[str] = set()
        self.form = FORMS[seed % len(FORMS)]
        self.classes = self.some(4)
        self.stems = self.some(EACH)
        self.data = self.write()

    def some(self, count: int) -> list[bytes]:
        """Draw `count` distinct names."""
        chosen: list[bytes] = []
        while len(chosen) < count:
            kind = str(self.draw.choice(list(self.kinds)))
            name = self.kinds[kind][int(self.draw.integers(len(self.kinds[kind])))]
            # in archives a backslash is the path separator of Windows
            windows = self.form in ("zip", "tar") and b"\\" in name
            cells = {in_a_list(text_of(other)) for other in chosen}
            if in_a_list(text_of(name)) not in cells and not windows:
                chosen.append(name)
                self.used[kind] += 1
        return chosen

    def new_path(self, folder: str, ending: str = "") -> str:
        """A random path in `folder` that was not used before."""
        while True:
            name = self.some(1)[0][: 255 - len(ending)] + ending.encode()
            path = os.fsdecode(os.fsencode(self.root) + f"/{folder}/".encode() + name)
            if path not in self.placed:
                self.placed.add(path)
                return path

    def members(self) -> list[tuple[bytes, bytes]]:
        """(name in the dataset, PNG bytes) of every image."""
        files = []
        for number, label in enumerate(self.classes):
            for stem in self.stems:
                pixels = self.draw.integers(0, 90, (12, 12, 3), np.uint8)
                pixels[..., number % 3] += 120
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                files.append((label + b"/" + stem[:251] + b".png", stream.getvalue()))
        return files

    def write(self) -> str:
        """Write the dataset in its form; returns its path."""
        ending = {"zip": ".zip", "tar": ".tar", "list": ".csv"}.get(self.form, "")
        (self.root / "in").mkdir()
        path = self.new_path("in", ending)
        members = self.members()
        if self.form == "splits":
            members = [(b"train/" + n, d) for n, d in members] + [
                (b"val/" + n, d) for n, d in self.members()[::2]
            ]
        self.texts = sorted(text_of(name) for name, _ in members)
        self.labels = sorted({text_of(name) for name in self.classes})
        if self.form == "list":
            self.labels = sorted(map(in_a_list, self.labels))
        if self.form == "zip":
            self._zip(path, members)
        elif self.form == "tar":
            with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
                for name, data in members:
                    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        else:
            root = os.path.dirname(path) if self.form == "list" else path
            for name, data in members:
                file = os.fsencode(root) + b"/" + name
                os.makedirs(os.path.dirname(file), exist_ok=True)
                with open(file, "wb") as stream:
                    stream.write(data)
        if self.form == "list":
            with open(path, "w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
                writer.writerow(("path", "label"))
                writer.writerows((text, in_a_list(text.rpartition("/")[0])) for text in self.texts)
        return path

    def _zip(self, path: str, members: list[tuple[bytes, bytes]]) -> None:
        """Write a zip as Linux's `zip` does: raw bytes as names, without an encoding flag."""
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, data) in enumerate(members):
                archive.writestr(_stand_in(number, name), data)
        raw = Path(path).read_bytes()
        for number, (name, _) in enumerate(members):
            raw = raw.replace(_stand_in(number, name).encode(), name)
        Path(path).write_bytes(raw)


def in_a_list(label: str) -> str:
    """A class name as CSV cell: outer spaces are stripped, and an empty one is replaced."""
    return label.strip() or "blank"


def _stand_in(number: int, name: bytes) -> str:
    """A unique ASCII placeholder with as many letters as the name has bytes."""
    return f"{number:05}".rjust(len(name), "Q")


class Caller:
    """Calls commands and checks the files that they wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()
        self.refusals: list[str] = []
        self.bad: list[str] = []
        self.crashes = self.outside = self.unread = 0

    def call(self, *words: str, into: tuple[str, ...] = (), json_: bool = True) -> Any:
        """Run a command and return its JSON document; Failure if it does not succeed."""
        before = everything(self.root)
        out, err = io.StringIO(), io.StringIO()
        argv = [*words, *(["--json"] if json_ else [])]
        try:
            code = command(argv, Environment(out, err))
        except BaseException as error:  # the command line must never raise
            self.crashes += 1
            raise Failure(f"{words[0]} raised {type(error).__name__}: {error}") from error
        self.calls[words[0]] += 1
        self.ends[code] += 1
        message = as_text(err.getvalue().strip()[-300:])
        allowed = tuple(os.path.realpath(path) for path in into)
        new = [p for p in everything(self.root) - before if not p.startswith(allowed or ("\0",))]
        if new:
            self.outside += 1
            raise Failure(f"{words[0]} wrote {new[:3]!r}")
        if code == 1 or "Traceback" in message:
            self.crashes += 1
            raise Failure(f"{words[0]} failed: {message}")
        if code:
            self.refusals.append(f"{words[0]} {code}: {message}")
            raise Failure(f"{words[0]} refused with {code}: {message}")
        return json.loads(out.getvalue()) if json_ and out.getvalue() else None

    def same(self, what: str, actual: object, expected: object) -> None:
        """Failure if a value differs from the expected one."""
        if actual != expected:
            self.unread += 1
            raise Failure(f"{what}: {str(actual)[:300]!r} is not {str(expected)[:300]!r}")


def everything(folder: Path) -> set[str]:
    """All paths below `folder`, resolved."""
    return {
        os.path.join(around, name)
        for around, folders, files in os.walk(os.path.realpath(folder))
        for name in folders + files
    }


def inner(path: str, data: str) -> str:
    """The path of a prediction, relative to the dataset."""
    return path.removeprefix(as_text(data) + "/").removeprefix(as_text(os.path.dirname(data)) + "/")


def once(case: Round, caller: Caller) -> None:
    """Run every command with the names of one round."""
    call, same = caller.call, caller.same
    data, run = case.data, case.new_path("out")
    page, table, arrays = (case.new_path("out", end) for end in (".html", ".csv", ".npz"))
    scanned, exported = case.new_path("out"), case.new_path("out")
    result = call("scan", data, "--out", scanned, into=(scanned,))
    same("scan: images", result["pictures"], len(case.texts))
    result = call("show", data, "--out", page, into=(page,))
    same("show: classes", result["classes"], case.labels)
    finetune = ["finetune", data, *QUICK, "--weights", "none", "--epochs", "1", "--out", run]
    result = call(*finetune, into=(run,))
    same("finetune: classes", result["classes"], case.labels)
    same("finetune: run", path_argument(result["run"]), run)  # printed paths can be pasted
    of_run(case, Path(run), caller)
    result = call("evaluate", run, data, "--split", "all", into=(run,))
    same("evaluate: images", result["n"], len(case.texts))
    same("evaluate: classes", result["classes"], case.labels)
    predictions = call("predict", run, data)
    same("predict: paths", sorted(inner(p["path"], data) for p in predictions), case.texts)
    call("predict", run, data, "--out", table, into=(table,), json_=False)
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    same(
        "predict: table",
        [(r["path"], r["label"]) for r in rows],
        [(p["path"], p["label"]) for p in predictions],
    )
    call("embed", run, data, "--out", arrays, into=(arrays,))
    with np.load(arrays, allow_pickle=False) as features:
        same("embed: paths", sorted(features["paths"].tolist()), case.texts)
        same("embed: classes", features["classes"].tolist(), case.labels)
    call("export", run, "--to", "safetensors", "--out", exported, into=(exported,))
    about = json.loads(Path(exported, "export.json").read_text(encoding="utf-8"))
    same("export: classes", about["classes"], case.labels)
    call("inspect", os.path.join(run, "model", "model.safetensors"))
    call("summary", run)
    call("report", run, into=(run,))
    call("finetune", data, "--out", run, "--resume", into=(run,))
    call("evaluate", exported, data, "--split", "all", into=(exported,))
    more(case, caller, run)


def of_run(case: Round, run: Path, caller: Caller) -> None:
    """Check the files of the run."""
    same = caller.same
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    same("config.toml: data", path_argument(config["data"]), case.data)
    same("config.toml: classes", config["facts"]["classes"], case.labels)
    card = json.loads((run / "model/model.json").read_text(encoding="utf-8"))
    same("model.json: classes", card["classes"], case.labels)
    with (run / "split.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    same("split.csv: paths", sorted(row["path"] for row in rows), case.texts)
    same("split.csv: labels", {row["label"] for row in rows}, set(case.labels))
    if not (run / "report.html").is_file():
        raise Failure("report.html is missing")


def more(case: Round, caller: Caller, run: str) -> None:
    """Label files, `--split-from`, pretraining and quarantine."""
    call, same = caller.call, caller.same
    listed, again, pre = case.new_path("in", ".csv"), case.new_path("out"), case.new_path("out")
    column, group = (text_of(name) for name in case.some(2))
    with open(listed, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(("path", "label", f"c {column}", f"g {group}"))
        for text in case.texts:
            writer.writerow((text, in_a_list(text.split("/")[-2]), column, text))
    words = [*QUICK, "--weights", "none", "--epochs", "1", "--out", again]
    result = call(
        "finetune",
        case.data,
        "--labels",
        listed,
        "--group-by",
        f"g {group}".strip(),
        *words,
        into=(again,),
    )
    same("labels: classes", result["classes"], sorted(set(map(in_a_list, case.labels))))
    shutil.rmtree(again)
    result = call("finetune", case.data, "--split-from", run, *words, into=(again,))
    same("split of a run: images", result["images"] + result["val_images"], len(case.texts))
    call(
        "pretrain",
        case.data,
        *QUICK,
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--nmb-prototypes",
        "8",
        "--tune",
        "off",
        "--out",
        pre,
        into=(pre,),
    )
    if case.form in ("folder", "splits"):
        aside = case.new_path("out")
        broken = os.path.join(
            case.data, os.fsdecode(case.classes[0]), os.fsdecode(case.some(1)[0][:240]) + " no.png"
        )
        if case.form == "splits":
            broken = os.path.join(case.data, "train", os.path.relpath(broken, case.data))
        Path(broken).write_text("no image")
        before = everything(case.root / "in")
        call("scan", case.data, "--quarantine", aside, into=(aside,))
        same("quarantine", everything(case.root / "in"), before - {os.path.realpath(broken)})
        call("scan", case.data, "--undo", aside, into=(broken,))
        same("undo", everything(case.root / "in"), before)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for one round, also as home and cache folder."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="names"))
    saved = {name: os.environ.get(name) for name in ("HOME", "UNFREEZE_CACHE", "MPLCONFIGDIR")}
    (folder / "all/out").mkdir(parents=True)
    (folder / "all/home").mkdir()
    os.environ |= {"HOME": str(folder / "all/home"), "UNFREEZE_CACHE": str(folder / "cache")}
    os.environ |= {"MPLCONFIGDIR": str(folder / "fonts")}
    os.chdir(folder / "all/home")
    try:
        yield folder / "all"
    finally:
        os.chdir(before)
        for name, value in saved.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder)


def fuzz(
    rounds: int, seed: int, log: Callable[[str], object] = lambda text: None
) -> dict[str, object]:
    """Counts over all rounds; `bad` lists the failures with the seed of their round."""
    began, calls, ends, kinds = time.monotonic(), Counter[str](), Counter[int](), Counter[str]()
    totals, bad = Counter[str](), []
    for number in range(seed, seed + rounds):
        with scratch() as root:
            caller = Caller(root)
            case = Round(root, number)
            try:
                once(case, caller)
            except Failure as failure:
                names = [ascii(n)[:60] for n in (case.data, *case.classes, *case.stems)]
                bad.append(f"seed {number}, {case.form}: {failure} | {' '.join(names)}")
                log(bad[-1])
        calls += caller.calls
        ends += caller.ends
        kinds += case.used
        totals += Counter({n: getattr(caller, n) for n in ("crashes", "outside", "unread")})
        totals["refused"] += len(caller.refusals)
        log(f"{number - seed + 1}/{rounds} {sum(calls.values())} calls, {len(bad)} bad")
    return {
        "rounds": rounds,
        "seed": seed,
        "file_system_encoding": sys.getfilesystemencoding(),
        "calls": dict(calls),
        "calls_in_all": sum(calls.values()),
        "ends": {str(code): count for code, count in ends.items()},
        "names": dict(kinds),
        **{name: totals[name] for name in ("crashes", "outside", "unread", "refused")},
        "bad": bad,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run all rounds and print the counts and failures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    report = fuzz(args.rounds, args.seed, lambda text: print(ascii(text), file=sys.stderr))
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["bad"]))


if __name__ == "__main__":
    main()
