"""Names of every kind through every command: no crash, nothing written elsewhere, all read back.

    python benchmarks/names.py --rounds 40 --seed 0 --json names.json

Each round draws names (bytes that are no text, emoji, line breaks, quotes, reserved words, 255
bytes) for a dataset, its classes and files, a run and what is written, and calls every command in
this process. Run it in another locale as well: LC_ALL=C PYTHONUTF8=0 python benchmarks/names.py.
"""

# names are bytes, and paths are put together as such
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
from unfreeze.runtime.world import World
from unfreeze.text import as_text, given_path, text_of


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
EACH = 5  # images of a class


class Failure(Exception):
    """What is not as it should be."""


class Round:
    """One draw of names, and the files that have them, below `root`."""

    def __init__(self, root: Path, seed: int, kinds: dict[str, list[bytes]] = KINDS) -> None:
        self.root, self.kinds = root, kinds
        self.draw = np.random.default_rng(seed)
        self.used: Counter[str] = Counter()
        self.placed: set[str] = set()
        self.form = FORMS[seed % len(FORMS)]
        self.classes = self.some(4)
        self.stems = self.some(EACH)
        self.data = self.made()

    def some(self, count: int) -> list[bytes]:
        """Different names of different kinds."""
        chosen: list[bytes] = []
        while len(chosen) < count:
            kind = str(self.draw.choice(list(self.kinds)))
            name = self.kinds[kind][int(self.draw.integers(len(self.kinds[kind])))]
            # in archives a backslash is what Windows puts between folders
            windows = self.form in ("zip", "tar") and b"\\" in name
            cells = {in_a_list(text_of(one)) for one in chosen}
            if in_a_list(text_of(name)) not in cells and not windows:
                chosen.append(name)
                self.used[kind] += 1
        return chosen

    def place(self, folder: str, ending: str = "") -> str:
        """A path that is not there yet."""
        while True:
            name = self.some(1)[0][: 255 - len(ending)] + ending.encode()
            path = os.fsdecode(os.fsencode(self.root) + f"/{folder}/".encode() + name)
            if path not in self.placed:
                self.placed.add(path)
                return path

    def members(self) -> list[tuple[bytes, bytes]]:
        """(name inside the dataset, bytes) of every image."""
        found = []
        for number, label in enumerate(self.classes):
            for stem in self.stems:
                pixels = self.draw.integers(0, 90, (12, 12, 3), np.uint8)
                pixels[..., number % 3] += 120
                held = io.BytesIO()
                Image.fromarray(pixels).save(held, "PNG")
                found.append((label + b"/" + stem[:251] + b".png", held.getvalue()))
        return found

    def made(self) -> str:
        """The dataset in its form; its path."""
        ending = {"zip": ".zip", "tar": ".tar", "list": ".csv"}.get(self.form, "")
        (self.root / "in").mkdir()
        path = self.place("in", ending)
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
                write = csv.writer(stream, quoting=csv.QUOTE_ALL)
                write.writerow(("path", "label"))
                write.writerows((text, in_a_list(text.rpartition("/")[0])) for text in self.texts)
        return path

    def _zip(self, path: str, members: list[tuple[bytes, bytes]]) -> None:
        """As zip of Linux writes it: names by their bytes, without saying in what."""
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, data) in enumerate(members):
                archive.writestr(_stand_in(number, name), data)
        raw = Path(path).read_bytes()
        for number, (name, _) in enumerate(members):
            raw = raw.replace(_stand_in(number, name).encode(), name)
        Path(path).write_bytes(raw)


def in_a_list(label: str) -> str:
    """A class as a cell of a list: spaces around it mean nothing there, and none is no class."""
    return label.strip() or "blank"


def _stand_in(number: int, name: bytes) -> str:
    """As many letters as the name has bytes, different for each number."""
    return f"{number:05}".rjust(len(name), "Q")


class Caller:
    """Calls commands, and looks at what they left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()
        self.refusals: list[str] = []
        self.bad: list[str] = []
        self.crashes = self.outside = self.unread = 0

    def call(self, *words: str, into: tuple[str, ...] = (), json_: bool = True) -> Any:
        """The document of a command that must succeed; Failure where it does not."""
        before = everything(self.root)
        out, err = io.StringIO(), io.StringIO()
        given = [*words, *(["--json"] if json_ else [])]
        try:
            code = command(given, World(out, err))
        except BaseException as error:  # the command line never raises
            self.crashes += 1
            raise Failure(f"{words[0]} raised {type(error).__name__}: {error}") from error
        self.calls[words[0]] += 1
        self.ends[code] += 1
        said = as_text(err.getvalue().strip()[-300:])
        allowed = tuple(os.path.realpath(place) for place in into)
        new = [p for p in everything(self.root) - before if not p.startswith(allowed or ("\0",))]
        if new:
            self.outside += 1
            raise Failure(f"{words[0]} wrote {new[:3]!r}")
        if code == 1 or "Traceback" in said:
            self.crashes += 1
            raise Failure(f"{words[0]} broke: {said}")
        if code:
            self.refusals.append(f"{words[0]} {code}: {said}")
            raise Failure(f"{words[0]} refused with {code}: {said}")
        return json.loads(out.getvalue()) if json_ and out.getvalue() else None

    def same(self, what: str, found: object, expected: object) -> None:
        """Failure where something is not read back as it was."""
        if found != expected:
            self.unread += 1
            raise Failure(f"{what}: {str(found)[:300]!r} is not {str(expected)[:300]!r}")


def everything(folder: Path) -> set[str]:
    """Every path below, by its real name."""
    return {
        os.path.join(around, name)
        for around, folders, files in os.walk(os.path.realpath(folder))
        for name in folders + files
    }


def inner(path: str, data: str) -> str:
    """A path that `predict` gives, as one inside the dataset."""
    return path.removeprefix(as_text(data) + "/").removeprefix(as_text(os.path.dirname(data)) + "/")


def once(it: Round, caller: Caller) -> None:
    """Every command on the names of one round."""
    call, same = caller.call, caller.same
    data, run = it.data, it.place("out")
    page, table, arrays = (it.place("out", end) for end in (".html", ".csv", ".npz"))
    scanned, exported = it.place("out"), it.place("out")
    found = call("scan", data, "--out", scanned, into=(scanned,))
    same("scan: images", found["pictures"], len(it.texts))
    found = call("show", data, "--out", page, into=(page,))
    same("show: classes", found["classes"], it.labels)
    finetune = ["finetune", data, *QUICK, "--weights", "none", "--epochs", "1", "--out", run]
    found = call(*finetune, into=(run,))
    same("finetune: classes", found["classes"], it.labels)
    same("finetune: run", given_path(found["run"]), run)  # what is told can be pasted
    of_run(it, Path(run), caller)
    found = call("evaluate", run, data, "--split", "all", into=(run,))
    same("evaluate: images", found["n"], len(it.texts))
    same("evaluate: classes", found["classes"], it.labels)
    said = call("predict", run, data)
    same("predict: paths", sorted(inner(one["path"], data) for one in said), it.texts)
    call("predict", run, data, "--out", table, into=(table,), json_=False)
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    same(
        "predict: table",
        [(r["path"], r["label"]) for r in rows],
        [(p["path"], p["label"]) for p in said],
    )
    call("embed", run, data, "--out", arrays, into=(arrays,))
    with np.load(arrays, allow_pickle=False) as held:
        same("embed: paths", sorted(held["paths"].tolist()), it.texts)
        same("embed: classes", held["classes"].tolist(), it.labels)
    call("export", run, "--to", "safetensors", "--out", exported, into=(exported,))
    about = json.loads(Path(exported, "export.json").read_text(encoding="utf-8"))
    same("export: classes", about["classes"], it.labels)
    call("inspect", os.path.join(run, "model", "model.safetensors"))
    call("summary", run)
    call("report", run, into=(run,))
    call("finetune", data, "--out", run, "--resume", into=(run,))
    call("evaluate", exported, data, "--split", "all", into=(exported,))
    more(it, caller, run)


def of_run(it: Round, run: Path, caller: Caller) -> None:
    """What the run's own files say."""
    same = caller.same
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    same("config.toml: data", given_path(config["data"]), it.data)
    same("config.toml: classes", config["facts"]["classes"], it.labels)
    card = json.loads((run / "model/model.json").read_text(encoding="utf-8"))
    same("model.json: classes", card["classes"], it.labels)
    with (run / "split.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    same("split.csv: paths", sorted(row["path"] for row in rows), it.texts)
    same("split.csv: labels", {row["label"] for row in rows}, set(it.labels))
    if not (run / "report.html").is_file():
        raise Failure("no report")


def more(it: Round, caller: Caller, run: str) -> None:
    """Lists, their columns, splits of a run, quarantine, pretraining."""
    call, same = caller.call, caller.same
    listed, again, pre = it.place("in", ".csv"), it.place("out"), it.place("out")
    column, group = (text_of(name) for name in it.some(2))
    with open(listed, "w", encoding="utf-8", newline="") as stream:
        write = csv.writer(stream, quoting=csv.QUOTE_ALL)
        write.writerow(("path", "label", f"c {column}", f"g {group}"))
        for text in it.texts:
            write.writerow((text, in_a_list(text.split("/")[-2]), column, text))
    words = [*QUICK, "--weights", "none", "--epochs", "1", "--out", again]
    found = call(
        "finetune",
        it.data,
        "--labels",
        listed,
        "--group-by",
        f"g {group}".strip(),
        *words,
        into=(again,),
    )
    same("labels: classes", found["classes"], sorted(set(map(in_a_list, it.labels))))
    shutil.rmtree(again)
    found = call("finetune", it.data, "--split-from", run, *words, into=(again,))
    same("split of a run: images", found["images"] + found["val_images"], len(it.texts))
    call(
        "pretrain",
        it.data,
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
    if it.form in ("folder", "splits"):
        aside = it.place("out")
        broken = os.path.join(
            it.data, os.fsdecode(it.classes[0]), os.fsdecode(it.some(1)[0][:240]) + " no.png"
        )
        if it.form == "splits":
            broken = os.path.join(it.data, "train", os.path.relpath(broken, it.data))
        Path(broken).write_text("no image")
        before = everything(it.root / "in")
        call("scan", it.data, "--quarantine", aside, into=(aside,))
        same("quarantine", everything(it.root / "in"), before - {os.path.realpath(broken)})
        call("scan", it.data, "--undo", aside, into=(broken,))
        same("undo", everything(it.root / "in"), before)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in which all of a round happens, its home and its cache as well."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="names"))
    kept = {name: os.environ.get(name) for name in ("HOME", "UNFREEZE_CACHE", "MPLCONFIGDIR")}
    (folder / "all/out").mkdir(parents=True)
    (folder / "all/home").mkdir()
    os.environ |= {"HOME": str(folder / "all/home"), "UNFREEZE_CACHE": str(folder / "cache")}
    os.environ |= {"MPLCONFIGDIR": str(folder / "fonts")}
    os.chdir(folder / "all/home")
    try:
        yield folder / "all"
    finally:
        os.chdir(before)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder)


def fuzz(
    rounds: int, seed: int, tell: Callable[[str], object] = lambda text: None
) -> dict[str, object]:
    """Counts over all rounds; `bad` says what went wrong, with the round's seed."""
    began, calls, ends, kinds = time.monotonic(), Counter[str](), Counter[int](), Counter[str]()
    totals, bad = Counter[str](), []
    for number in range(seed, seed + rounds):
        with scratch() as root:
            caller = Caller(root)
            it = Round(root, number)
            try:
                once(it, caller)
            except Failure as failure:
                names = [ascii(n)[:60] for n in (it.data, *it.classes, *it.stems)]
                bad.append(f"seed {number}, {it.form}: {failure} | {' '.join(names)}")
                tell(bad[-1])
        calls += caller.calls
        ends += caller.ends
        kinds += it.used
        totals += Counter({n: getattr(caller, n) for n in ("crashes", "outside", "unread")})
        totals["refused"] += len(caller.refusals)
        tell(f"{number - seed + 1}/{rounds} {sum(calls.values())} calls, {len(bad)} bad")
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
    """Counts of calls, ends and names, and whatever went wrong."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=40)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--json")
    given = ask.parse_args()
    report = fuzz(given.rounds, given.seed, lambda text: print(ascii(text), file=sys.stderr))
    print(json.dumps(report, indent=1))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["bad"]))


if __name__ == "__main__":
    main()
