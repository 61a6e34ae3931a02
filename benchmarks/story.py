"""From unlabelled photographs to a file that runs without unfreeze, with 60 labels.

    python benchmarks/story.py --archive trashnet.zip --arch timm/tf_efficientnet_lite0 \
        --weights efficientnet-lite0.pth --json story.json

A third of the photographs is set apart as new files. The others lose their labels. Then `suggest`
names 60 of them, each gets its true class through the page of `label` (one request a click, as the
page sends them), `finetune` trains a head on the frozen network, `audit` looks for wrong labels,
`evaluate` says how many new files are answered, `export --with-preprocessing` writes one ONNX file,
and a script with Pillow, NumPy and onnxruntime alone classifies the new files. Beside it: 60 random
images instead of suggested ones, the same otherwise.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import unfreeze

LEVEL = 0.8  # 60 labels leave too few validation images for more
PLAIN = """
import json, sys
import numpy, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession("model.onnx")
classes = json.load(open("export.json"))["classes"]
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: numpy.asarray(image)})
    print(classes[probabilities.argmax()])
"""


def photographs(archive: str, folder: Path, seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Extract into pool/ and new/ without classes; the true class of each file's name."""
    rng = np.random.default_rng(seed)
    truth: tuple[dict[str, str], dict[str, str]] = {}, {}
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith(".jpg"))
        for number, name in enumerate(rng.permutation(names).tolist()):
            part = int(number % 3 == 0)
            place = folder / ("new" if part else "pool") / f"{number:04}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(opened.read(name))
            truth[part][place.name] = Path(name).parent.name
    return truth


def label_by_page(pool: Path, table: Path, truth: dict[str, str]) -> int:
    """Give every listed image its true class through the page of `label`; number of clicks."""
    with table.open(newline="", encoding="utf-8") as file:
        count = sum(not row["label"] for row in csv.DictReader(file))
    words = ["label", str(pool), "--out", str(table), "--no-browser", "--json"]
    words += ["--classes", *sorted(set(truth.values()))]
    command = [sys.executable, "-m", "unfreeze", *words]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        lines = iter(process.stderr or ())
        address = next(line.strip() for line in lines if line.startswith("http://127.0.0.1"))
        status = asked(address + "status/-1")
        for _ in range(count):
            number = status["ahead"][0]
            item = asked(f"{address}item/{number}")
            label = truth[Path(item["path"]).name]
            status = asked(f"{address}label", {"image": number, "label": label})
        asked(f"{address}finish", {})
        process.communicate()
    return count


def asked(address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a request of the page."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        value: dict[str, Any] = json.load(answer)
    return value


def told(s: argparse.Namespace, folder: Path, by: Any, truth: Any, seed: int) -> dict[str, Any]:
    """One way to choose the images: its figures and the seconds of each step."""
    pool, new, out = folder / "pool", folder / "new", folder / by
    out.mkdir()
    table, run, seconds = out / "labels.csv", out / "run", {}
    quiet: dict[str, Any] = {"progress": False}

    def step(name: str, action: Any) -> Any:
        began = time.perf_counter()
        value = action()
        seconds[name] = time.perf_counter() - began
        return value

    step("suggest", lambda: unfreeze.suggest(
        s.weights, str(pool), str(table), budget=s.budget, by=by, arch=s.arch, seed=seed, **quiet
    ))  # fmt: skip
    clicks = step("label", lambda: label_by_page(pool, table, truth[0]))
    start: dict[str, Any] = {"weights": s.weights, "arch": s.arch, **quiet}
    step("finetune", lambda: unfreeze.finetune(
        str(pool), labels=str(table), out=str(run), freeze="all", seed=seed, **start
    ))  # fmt: skip
    audited = step("audit", lambda: unfreeze.audit(
        str(pool), str(out / "audit"), labels=str(table), folds=2, **start
    ))  # fmt: skip
    labels = out / "new.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *sorted(truth[1].items())])
    result = step("evaluate", lambda: unfreeze.evaluate(
        str(run), str(new), labels=str(labels), split="all", unknown=LEVEL, **quiet
    ))  # fmt: skip
    exported = step("export", lambda: unfreeze.export(
        str(run), "onnx", str(out / "exported"), with_preprocessing=True, **quiet
    ))  # fmt: skip
    names = sorted(truth[1])
    script = [sys.executable, "-I", "-c", PLAIN, *(str((new / name).resolve()) for name in names)]
    lines = step("plain script", lambda: subprocess.run(
        script, cwd=out / "exported", check=True, capture_output=True, text=True
    ).stdout.split())  # fmt: skip
    right = [line == truth[1][name] for line, name in zip(lines, names, strict=True)]
    return {
        "clicks": clicks, "seconds": seconds, "accuracy": float(np.mean(right)),
        "accuracy_evaluate": result.accuracy, "interval": result.interval,
        "answered": result.answered, "accuracy_answered": result.accuracy_answered,
        "coverage": result.coverage, "reason": result.unknown.reason if result.unknown else "",
        "suspects": len(audited.suspects), "max_difference": exported.max_difference,
    }  # fmt: skip


def main() -> None:
    """Tell the story once for each seed and way to choose."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json")
    s = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"auto": [], "random": []}
    for seed in range(s.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            truth = photographs(s.archive, Path(scratch), seed)
            for by, found in rows.items():
                found.append(told(s, Path(scratch), by, truth, seed))
                print(seed, by, json.dumps(found[-1]), flush=True)
        if s.json:
            Path(s.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
