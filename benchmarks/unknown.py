"""How well a model says "I don't know": coverage of its sets, and images of other classes.

    python benchmarks/unknown.py --archive trashnet.zip --arch timm/tf_efficientnet_lite0 \
        --weights efficientnet-lite0.pth --foreign cifar10.zip --json unknown.json

For each seed some classes are left out; of the others, a part is for training and validation, the
rest is a test set. A frozen network is fine-tuned. Then: coverage, answered share and accuracy of
the answered on the test set; AUROC of `ood` between the test set and the left-out classes, images
of the archive --foreign, and noise; the share of these that are answered.
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import unfreeze
from unfreeze.evaluation.out_of_distribution import auroc

LEVEL = 0.95


def extract(archive: str, folder: Path, per_class: int) -> dict[str, list[Path]]:
    """Images of each class in the archive, at most `per_class`, by the name of their folder."""
    with zipfile.ZipFile(archive) as opened:
        names = [n for n in opened.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png"))]
        classes: dict[str, list[Path]] = {}
        for name in np.random.default_rng(0).permutation(sorted(names)).tolist():
            images = classes.setdefault(Path(name).parent.name, [])
            if len(images) < per_class:
                images.append(Path(opened.extract(name, folder)))
    return classes


def noise(folder: Path, count: int, side: int) -> list[Path]:
    """Images of random pixels."""
    folder.mkdir()
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        paths.append(folder / f"{number:04}.png")
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(paths[-1])
    return paths


def split(classes: dict[str, list[Path]], folder: Path, test: float, seed: int) -> None:
    """Folders train/CLASS and test/CLASS with links to the images."""
    rng = np.random.default_rng(seed)
    for name, images in classes.items():
        order = rng.permutation(len(images))
        for rank, position in enumerate(order.tolist()):
            part = "test" if rank < test * len(images) else "train"
            place = folder / part / name / images[position].name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(images[position])


def measured(
    s: argparse.Namespace,
    classes: dict[str, list[Path]],
    foreign: dict[str, list[Path]],
    seed: int,
    scratch: Path,
) -> dict[str, Any]:
    """The figures of one seed."""
    rng = np.random.default_rng(seed)
    left_out = sorted(rng.permutation(sorted(classes))[: s.left_out].tolist())
    known = {name: images for name, images in classes.items() if name not in left_out}
    data, run = scratch / f"data-{seed}", scratch / f"run-{seed}"
    split(known, data, s.test, seed)
    unfreeze.finetune(
        str(data), arch=s.arch, weights=s.weights, freeze="all", out=str(run), seed=seed,
        val=s.val, progress=False,
    )  # fmt: skip
    result = unfreeze.evaluate(str(run), str(data), split="test", unknown=LEVEL, progress=False)
    inside = unfreeze.predict(str(run), str(data / "test"), unknown=LEVEL, progress=False)
    unknown: Any = result.unknown
    row: dict[str, Any] = {
        "left_out": left_out, "accuracy": result.accuracy, "coverage": result.coverage,
        "coverage_interval": unknown.coverage_interval, "set_size": result.set_size,
        "answered": result.answered, "accuracy_answered": result.accuracy_answered,
        "aurc": unknown.aurc, "n": unknown.n, "validation_images": unknown.validation_images,
        "score": unknown.score,
    }  # fmt: skip
    strange = {"left-out classes": [p for name in left_out for p in classes[name]], **foreign}
    for name, images in strange.items():
        found = unfreeze.predict(str(run), [str(p) for p in images], unknown=LEVEL, progress=False)
        scores = [np.array([p["ood"] for p in some], np.float32) for some in (inside, found)]
        answered = float(np.mean([p["label"] is not None for p in found]))
        sure = float(np.mean([p["probability"] > LEVEL for p in found]))
        row[name] = {"auroc": auroc(*scores), "answered": answered, "above_level": sure,
                     "n": len(found)}  # fmt: skip
    return row


def main() -> None:
    """Run all seeds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--foreign", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--left-out", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=150)
    parser.add_argument("--test", type=float, default=0.4)
    parser.add_argument("--val", type=float, default=0.4)
    parser.add_argument("--images", type=int, default=300, help="of --foreign, and of noise")
    parser.add_argument("--json")
    s = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        classes = extract(s.archive, scratch / "images", s.per_class)
        others = extract(s.foreign, scratch / "foreign", s.images)
        every = sorted(path for images in others.values() for path in images)
        mixed = np.random.default_rng(1).permutation(np.array(every, str))
        foreign = {
            "other data": [Path(p) for p in mixed[: s.images].tolist()],
            "noise": noise(scratch / "noise", s.images, 64),
        }
        for seed in range(s.seeds):
            rows.append(measured(s, classes, foreign, seed, scratch))
            print(json.dumps(rows[-1]), flush=True)
            if s.json:
                Path(s.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
