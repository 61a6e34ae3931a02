"""Compare unfreeze's SwAV with SwAV built from lightly: same images, network and evaluation.

    pip install lightly    # tested with 1.6.0; a copy on PYTHONPATH works too
    OMP_NUM_THREADS=1 python benchmarks/beside_lightly.py --archive cifar10.zip --json beside.json

Three variants per seed, all from the same random initialization:

`ours`     `unfreeze.pretrain` with the auto recipe, as `benchmarks/cifar.py` runs it.
`matched`  lightly's transform, head, prototypes and loss with every value of `ours` (batch, crops,
           jitter, prototypes, their freezing, widths, temperature, epsilon, optimizer, schedule).
`example`  the same blocks with the settings of lightly's example: Adam 0.001, batch 128, 512
           prototypes, the transform's defaults; only the crop sizes are 32 and 16 pixels instead of
           224 and 96. The example has no memory bank, so there is none. `--small-crops 2` makes
           two small crops instead of six and takes little more than half of the time.

lightly's loop is the one of its example: one forward pass per view. Backbone and head run in bf16
if ours do; normalisation, prototypes and loss run in float32 as in ours. Each finished run is
written to `--json` at once, and runs that are already there are skipped. The last epoch is
evaluated: no checkpoint is selected.
"""

import argparse
import copy
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightly
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.transforms import SwaVTransform
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset

import unfreeze
from cifar import evaluate_backbone, machine, one_run, unpack
from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.commands.pretrain import PretrainPlan
from unfreeze.data.augment.config import preset
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.optim.optimizer import decay_groups, set_lr, warmup_cosine
from unfreeze.runtime.device import autocast, pick_precision

VARIANTS = ("matched", "example", "ours")


class InMemory(Dataset):
    """A dataset of decoded images in memory; each item is a list of views."""

    def __init__(self, folder: Path, transform: SwaVTransform) -> None:
        self.transform = transform
        self.images = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.jpg"))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(self.images[index])


class LightlySwaV(nn.Module):
    """A backbone with lightly's head and prototypes, as in lightly's example."""

    def __init__(
        self, backbone: nn.Module, head: SwaVProjectionHead, prototypes: SwaVPrototypes
    ) -> None:
        super().__init__()
        self.backbone, self.projection_head, self.prototypes = backbone, head, prototypes

    def forward(self, view: torch.Tensor, step: int, precision: str) -> torch.Tensor:
        """Scores `[B, K]` of one view `[B, 3, S, S]`."""
        with autocast(view.device, precision):
            z = self.projection_head(self.backbone(view))
        return self.prototypes(F.normalize(z.float(), dim=1, p=2), step)


@dataclass
class Setup:
    """The settings in which the two lightly variants differ; `schedule` None: a constant rate."""

    model: LightlySwaV
    transform: SwaVTransform
    large: int  # how many of the views are large
    criterion: SwaVLoss
    optimizer: torch.optim.Optimizer
    batch_size: int
    schedule: dict[str, float] | None = None


def example(backbone: nn.Module, width: int, small_crops: int) -> Setup:
    """The settings of lightly's example, with smaller crops."""
    head = SwaVProjectionHead(width, width, 128)
    model = LightlySwaV(backbone, head, SwaVPrototypes(128, n_prototypes=512))
    return Setup(
        model=model,
        transform=SwaVTransform(crop_sizes=(32, 16), crop_counts=(2, small_crops)),
        large=2,
        criterion=SwaVLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.001),
        batch_size=128,
    )


def matched(backbone: nn.Module, width: int, plan: PretrainPlan) -> Setup:
    """Lightly's blocks with the values of `plan`, the ones that `unfreeze.pretrain` uses."""
    s = plan.settings
    views = preset(s["augment"], s["size_crops"][0], (0.0, 1.0))
    if s["queue_length"] or s["optimizer"] != "adamw":
        raise SystemExit("The matched variant supports AdamW without a queue only.")
    model = LightlySwaV(
        backbone,
        SwaVProjectionHead(width, s["hidden_mlp"], s["feat_dim"]),
        SwaVPrototypes(s["feat_dim"], s["nmb_prototypes"], s["freeze_prototypes_niters"]),
    )
    return Setup(
        model=model,
        transform=SwaVTransform(
            crop_sizes=tuple(s["size_crops"]),
            crop_counts=tuple(s["nmb_crops"]),
            crop_min_scales=tuple(s["min_scale_crops"]),
            crop_max_scales=tuple(s["max_scale_crops"]),
            hf_prob=views.flip,
            cj_prob=views.jitter,
            cj_bright=views.brightness,
            cj_contrast=views.contrast,
            cj_sat=views.saturation,
            cj_hue=views.hue,
            random_gray_scale=views.grey,
            gaussian_blur=views.blur,
        ),
        large=s["nmb_crops"][0],
        criterion=SwaVLoss(s["temperature"], s["sinkhorn_iterations"], s["epsilon"]),
        optimizer=torch.optim.AdamW(
            decay_groups(model.named_parameters(), s["wd"]), lr=s["base_lr"]
        ),
        batch_size=s["batch_size"],
        schedule={
            "total": plan.steps,
            "warmup": s["warmup_epochs"] * plan.steps_per_epoch,
            "base": s["base_lr"],
            "final": s["final_lr"],
            "start": s["start_warmup"],
        },
    )


def trained(setup: Setup, data: Path, epochs: int) -> Iterator[float]:
    """Train; yields the mean loss of each epoch."""
    loader = DataLoader(
        InMemory(data / "train", setup.transform),
        batch_size=setup.batch_size,
        shuffle=True,
        drop_last=True,
    )
    precision, _ = pick_precision("auto", torch.device("cpu"))
    model = setup.model.to(memory_format=torch.channels_last)
    step = 0
    for _ in range(epochs):
        total = 0.0
        for views in loader:
            if setup.schedule:
                set_lr(setup.optimizer, warmup_cosine(step, **setup.schedule))
            model.prototypes.normalize()
            scores = [
                model(view.to(memory_format=torch.channels_last), step, precision) for view in views
            ]
            loss = setup.criterion(scores[: setup.large], scores[setup.large :])
            setup.optimizer.zero_grad()
            loss.backward()
            setup.optimizer.step()
            total += loss.item()
            step += 1
        yield total / len(loader)


def lightly_run(
    data: Path, seed: int, variant: str, args: argparse.Namespace, scratch: Path
) -> dict:
    """Train one seed of a lightly variant; evaluated after the training has ended."""
    torch.manual_seed(seed)  # before the network is built, as unfreeze.pretrain does
    np.random.seed(seed)  # lightly's blur draws from numpy
    random.seed(seed)
    backbone = build(args.arch)
    width = remove_head(backbone)
    states = {0: copy.deepcopy(backbone.state_dict())}
    if variant == "example":
        setup = example(backbone, width, args.small_crops)
    else:
        plan = unfreeze.pretrain(
            str(data), arch=args.arch, epochs=args.epochs, seed=seed, device="cpu", dry_run=True
        )
        setup = matched(backbone, width, plan)
    started = time.monotonic()
    loss = 0.0
    for epoch, loss in enumerate(trained(setup, data, args.epochs), 1):
        print(f"{variant} {seed} epoch {epoch} loss {loss:.4f} ", end="")
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        if epoch % args.every == 0 or epoch == args.epochs:
            states[epoch] = copy.deepcopy(backbone.state_dict())
    seconds = time.monotonic() - started
    card = ModelCard("backbone", args.arch, preprocess=Preprocess(32, 32).as_dict())
    curve = []
    for epoch, state in states.items():
        save_model(scratch / "at" / "model", state, card)
        curve.append({"epoch": epoch, **evaluate_backbone(scratch / "at", data, scratch)})
    return {"seed": seed, "curve": curve, "loss": loss, "seconds": round(seconds, 1)}


def differences(runs: list[dict]) -> dict[str, dict]:
    """Last-epoch k-NN accuracy, ours minus theirs in points: per seed, mean, 95 % t interval."""
    last = {(r["variant"], r["seed"]): 100 * r["curve"][-1]["knn"] for r in runs}
    results = {}
    for variant in VARIANTS[:-1]:
        seeds = sorted(s for v, s in last if v == variant and ("ours", s) in last)
        gaps = np.array([last["ours", s] - last[variant, s] for s in seeds])
        if len(gaps) < 2:
            continue
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
        results[f"ours - {variant}"] = {
            "seeds": seeds,
            "points": [round(float(g), 2) for g in gaps],
            "mean": round(float(gaps.mean()), 2),
            "interval_95": [round(float(gaps.mean() + sign * half), 2) for sign in (-1, 1)],
        }
    return results


def commit() -> str:
    """The commit of this checkout, with a + if files were changed."""
    here = Path(__file__).parent
    described = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    return subprocess.run(described, cwd=here, capture_output=True, text=True).stdout.strip()


def write(path: Path, args: argparse.Namespace, runs: list[dict]) -> None:
    """Write all finished runs and their differences as JSON."""
    settings = {k: v for k, v in vars(args).items() if k not in ("archive", "json", "seeds")}
    versions = {"lightly": lightly.__version__, "torchvision": torchvision.__version__}
    report = {
        "settings": {k: v for k, v in settings.items() if k != "variants"},
        "machine": machine() | versions,
        "runs": runs,
        "differences": differences(runs),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Run what is not in the JSON file yet, seed by seed, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--arch", default="unfreeze/small")
    parser.add_argument("--small-crops", type=int, default=6, help="of the example variant")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--json", type=Path, required=True, help="results; finished runs are skipped"
    )
    args = parser.parse_args()
    args.optimizer, args.device = "adamw", "cpu"
    runs = json.loads(args.json.read_text())["runs"] if args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        data, scratch = Path(folder) / "data", Path(folder) / "scratch"
        unpack(args.archive, args.images, data)
        for seed in args.seeds:
            for variant in args.variants:
                if any((r["variant"], r["seed"]) == (variant, seed) for r in runs):
                    continue
                started = time.process_time()
                if variant == "ours":
                    run = one_run(data, seed, args, scratch)
                else:
                    run = lightly_run(data, seed, variant, args, scratch)
                spent = round(time.process_time() - started, 1)  # evaluation included
                runs.append({"variant": variant, "commit": commit(), "cpu_seconds": spent, **run})
                write(args.json, args, runs)
                points = ", ".join(f"{p['epoch']}: {p['knn']:.4f}" for p in run["curve"])
                print(f"{variant} seed {seed}: k-NN {points}; {run['seconds']:.0f} s", flush=True)
    print(json.dumps(differences(runs), indent=1))


if __name__ == "__main__":
    main()
