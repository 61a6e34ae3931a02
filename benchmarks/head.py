"""Frozen backbone: our head solver against scikit-learn, by backbone, dataset and labels.

    python benchmarks/head.py --photos photographs.zip --cifar cifar10.zip --scenes scenes.zip \
        --squeezenet squeezenet1_1.pth --efficientnet lite0.pth --scratch .bench/head \
        --json head.json

`unfreeze embed` computes the features of every image once. On them the head is solved as `finetune
--freeze all` does it, and scikit-learn's logistic regression is fitted with several common
settings, on the same images: 1, 5, 10 and 50 labels per class, five seeds, the same test images.
For each backbone and dataset the commands `finetune` and `evaluate` are run once, to show that they
give the accuracy of the solver. `--photos`: `DIR/<class>/*.jpg`; `--cifar`:
`cifar10/test/<class>/*`; `--scenes`: `DIR/{images,masks}/<split>/*`, whose patches are labelled
by their largest class. Results in `--scratch` are reused.
"""

import argparse
import io
import json
import platform
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import unfreeze
from unfreeze.evaluation.logistic_regression import fit_logistic

LABELS, SEEDS = (1, 5, 10, 50), 5
TRAIN, TEST = 60, 60  # images per class: to draw labels from, and for the test set
UNTRAINED = ("resnet18", "mobilenet_v3_small", "vgg11", "timm/convnext_atto")
VIT = "timm/vit_tiny_patch16_224"
PATCH = 64

Images = Iterator[tuple[str, Image.Image]]


def photographs(path: str) -> Images:
    """(class, image) pairs of `DIR/<class>/*.jpg`."""
    with zipfile.ZipFile(path) as members:
        for name in sorted(members.namelist()):
            if name.lower().endswith((".jpg", ".png")):
                yield name.split("/")[-2], Image.open(io.BytesIO(members.read(name)))


def cifar(path: str) -> Images:
    """The test images of CIFAR-10, on which no SwAV run was pretrained."""
    with zipfile.ZipFile(path) as members:
        for name in sorted(members.namelist()):
            if "/test/" in name and name.endswith(".jpg"):
                yield name.split("/")[2], Image.open(io.BytesIO(members.read(name)))


def digits() -> Images:
    """scikit-learn's handwritten digits, at 32 pixels."""
    bunch = load_digits()
    for image, label in zip(bunch.images, bunch.target, strict=True):
        pixels = Image.fromarray((image * 15.9).astype(np.uint8))
        yield str(label), pixels.resize((32, 32), Image.Resampling.BICUBIC)


def patches(path: str) -> Images:
    """Square patches of street scenes with one class on more than 60 % of the pixels."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path) as members:
        for name in sorted(members.namelist()):
            if "/images/" not in name or not name.endswith(".jpg"):
                continue
            mask_name = name.replace("/images/", "/masks/").rsplit(".", 1)[0] + ".png"
            image = Image.open(io.BytesIO(members.read(name))).convert("RGB")
            mask = np.array(Image.open(io.BytesIO(members.read(mask_name))))
            for _ in range(60):
                top = int(draw.integers(0, mask.shape[0] - PATCH))
                left = int(draw.integers(0, mask.shape[1] - PATCH))
                inside = mask[top : top + PATCH, left : left + PATCH]
                label, count = Counter(inside.ravel().tolist()).most_common(1)[0]
                if label < 11 and count > 0.6 * PATCH**2:
                    yield str(label), image.crop((left, top, left + PATCH, top + PATCH))


def laid_out(images: Images, folder: Path) -> Path:
    """Write TRAIN and at most TEST images of each large enough class to `folder/{train,test}`."""
    if folder.exists():
        return folder
    by_class = defaultdict(list)
    for label, image in images:
        by_class[label].append(image.convert("RGB"))
    for label, members in by_class.items():
        if len(members) < 1.5 * TRAIN:
            continue
        order = np.random.default_rng(0).permutation(len(members))
        for split, some in (("train", order[:TRAIN]), ("test", order[TRAIN : TRAIN + TEST])):
            target = folder / split / f"class-{label}"
            target.mkdir(parents=True)
            for number in some:
                members[number].save(target / f"{number:04d}.png")
    return folder


def backbones(args: argparse.Namespace, data: dict[str, Path]) -> dict[str, dict]:
    """Name -> arguments of `finetune` and `embed`. The SwAV backbones are pretrained here."""
    results: dict[str, dict] = {}
    if args.squeezenet:
        results["squeezenet1_1, ImageNet"] = {"weights": args.squeezenet, "arch": "squeezenet1_1"}
    if args.efficientnet:
        arch = "timm/tf_efficientnet_lite0"
        results["efficientnet_lite0, ImageNet"] = {"weights": args.efficientnet, "arch": arch}
    runs = args.scratch / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(timm.create_model(VIT.split("/")[1]).state_dict(), runs / "vit.pth")
    results["vit_tiny, untrained"] = {"weights": str(runs / "vit.pth"), "arch": VIT}
    small = {"image_size": 64, "batch_size": 32, "device": "cpu", "tune": "off"}
    start = {"epochs": 0, "stem": "imagenet"}
    configs = {
        **{f"{arch.split('/')[-1]}, untrained": {"arch": arch, **start} for arch in UNTRAINED},
        "unfreeze/small, SwAV": {"arch": "unfreeze/small", "epochs": args.epochs},
        "resnet18, SwAV": {
            "arch": "resnet18",
            "epochs": args.epochs,
            "epsilon": 0.03,
            "stem": "imagenet",
        },
        "squeezenet1_1, SwAV": {"arch": "squeezenet1_1", "epochs": args.epochs},
    }
    for name, settings in configs.items():
        run = runs / name.replace("/", "-").replace(", ", "-")
        source = data["photos"] if name.startswith("squeezenet") else data["cifar"]
        if name.startswith("squeezenet") and args.squeezenet:
            settings |= {"init": args.squeezenet, "stem": "imagenet"}
        if not (run / "model" / "model.json").exists():
            unfreeze.pretrain(
                str(source), out=str(run), overwrite=run.exists(), **{**small, **settings}
            )
        results[name] = {"weights": str(run)}
    return results


def embedded(data: Path, backbone: dict, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[N, D]`, labels `[N]`, and a mask `[N]` of the images in `train`."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        unfreeze.embed(backbone["weights"], str(data), out=str(out), **_arch(backbone))
    arrays = np.load(out)
    train = np.array([path.startswith("train/") for path in arrays["paths"]])
    return arrays["features"], arrays["labels"], train


def _arch(backbone: dict) -> dict:
    return {"arch": backbone["arch"]} if "arch" in backbone else {}


def way(scaler: type | None, strength: float) -> Callable[[], object]:
    """A factory of unfitted scikit-learn pipelines; `strength`: C."""

    def make() -> object:
        model = LogisticRegression(C=strength, max_iter=1000)
        return make_pipeline(scaler(), model) if scaler else model

    return make


WAYS = {
    "raw, C=1": way(None, 1.0),
    "standardised, C=1": way(StandardScaler, 1.0),
    "standardised, C=0.01": way(StandardScaler, 0.01),
    "unit norm, C=1": way(Normalizer, 1.0),
    "unit norm, C=100": way(Normalizer, 100.0),
}


def cell(features: np.ndarray, labels: np.ndarray, train: np.ndarray, count: int) -> dict:
    """Accuracies with `count` labels per class for each seed: ours and scikit-learn's."""
    accuracies: dict[str, list[float]] = defaultdict(list)
    classes, test = int(labels.max()) + 1, np.flatnonzero(~train)
    seconds = 0.0
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(train))
        some = np.concatenate([order[labels[order] == label][:count] for label in range(classes)])
        x, y = features[some], labels[some]
        began = time.perf_counter()
        fitted = fit_logistic(torch.from_numpy(x), torch.from_numpy(y).long(), classes, seed=seed)
        seconds += time.perf_counter() - began
        assert fitted is not None
        scores = features[test] @ fitted.weight.numpy().T + fitted.bias.numpy()
        accuracies["ours"].append(float((scores.argmax(1) == labels[test]).mean()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence and deprecation warnings
            for name, make in WAYS.items():
                model = make().fit(x, y)  # type: ignore[attr-defined]
                accuracies[name].append(float(model.score(features[test], labels[test])))
    return {"accuracies": dict(accuracies), "seconds": seconds / SEEDS}


def compare_best(result: dict) -> dict:
    """Ours against the best scikit-learn setting by mean accuracy, paired by seed."""
    accuracies = {name: np.array(values) for name, values in result["accuracies"].items()}
    ours = accuracies.pop("ours")
    best = max(accuracies, key=lambda name: accuracies[name].mean())
    gap = ours - accuracies[best]
    return {
        "ours": float(ours.mean()),
        "sklearn": float(accuracies[best].mean()),
        "way": best,
        "difference": float(gap.mean()),
        "error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
    }


def command(data: Path, backbone: dict, run: Path, features: tuple) -> dict:
    """Accuracy of `finetune --freeze all` with 10 labels per class, and of the solver alone."""
    values, labels, train = features
    done = run / "command.json"
    if not done.exists():
        unfreeze.finetune(
            str(data),
            out=str(run),
            overwrite=run.exists(),
            freeze="all",
            labels_per_class=10,
            val=0,
            **backbone,
        )
        accuracy = unfreeze.evaluate(str(run), str(data)).accuracy
        done.write_text(json.dumps({"accuracy": accuracy}))
    lines = (run / "split.csv").read_text().splitlines()[1:]
    used = {line.split(",")[0] for line in lines if line.endswith(",train")}
    paths = np.load(run.parent.parent / "features" / f"{run.name}.npz")["paths"]
    some = np.array([index for index, path in enumerate(paths) if path in used])
    fitted = fit_logistic(
        torch.from_numpy(values[some]),
        torch.from_numpy(labels[some]).long(),
        int(labels.max()) + 1,
    )
    assert fitted is not None
    scores = values[~train] @ fitted.weight.numpy().T + fitted.bias.numpy()
    return {
        **json.loads(done.read_text()),
        "solver": float((scores.argmax(1) == labels[~train]).mean()),
    }


def main() -> None:
    """Run all cells and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("photos", "cifar", "scenes", "squeezenet", "efficientnet"):
        parser.add_argument(f"--{name}")
    parser.add_argument(
        "--epochs", type=int, default=10, help="epochs of the SwAV pretraining runs"
    )
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sources = {
        "photos": lambda: photographs(args.photos),
        "cifar": lambda: cifar(args.cifar),
        "digits": digits,
        "patches": lambda: patches(args.scenes),
    }
    data = {name: laid_out(make(), args.scratch / name) for name, make in sources.items()}
    rows = []
    for name, backbone in backbones(args, data).items():
        for source, folder in data.items():
            slug = f"{source}-{name}".replace("/", "-").replace(", ", "-")
            arrays = embedded(folder, backbone, args.scratch / "features" / f"{slug}.npz")
            norm = float(np.linalg.norm(arrays[0], axis=1).mean())
            end_to_end = command(folder, backbone, args.scratch / "commands" / slug, arrays)
            for count in LABELS:
                cached = args.scratch / "cells" / f"{slug}-{count}.json"
                if not cached.exists():
                    cached.parent.mkdir(exist_ok=True)
                    cached.write_text(json.dumps(cell(*arrays, count)))
                result = json.loads(cached.read_text())
                row = {
                    "backbone": name,
                    "data": source,
                    "labels": count,
                    "norm": norm,
                    **compare_best(result),
                    **result,
                    "command": end_to_end,
                }
                rows.append(row)
                print(
                    f"{name:30} {source:8} {count:3} norm {norm:7.1f}  ours {row['ours']:.3f}  "
                    f"scikit-learn {row['sklearn']:.3f} ({row['way']})  "
                    f"{row['difference']:+.3f} ± {row['error']:.3f}  {row['seconds']:.2f} s",
                    flush=True,
                )
            print(
                f"    command {end_to_end['accuracy']:.3f}, solver {end_to_end['solver']:.3f}",
                flush=True,
            )
            if args.json:
                about = {"machine": platform.processor(), "torch": torch.__version__}
                args.json.write_text(json.dumps({**about, "rows": rows}, indent=1))
    below = [row for row in rows if row["difference"] < -0.01]
    print(f"{len(rows)} cells; {len(below)} are over 1 point below the best of scikit-learn")


if __name__ == "__main__":
    main()
