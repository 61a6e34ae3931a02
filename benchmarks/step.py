"""Training-step throughput of SwAV in images per second, against a plain implementation.

    python benchmarks/step.py --threads 1 --json step.json

Plain: float32 (on a GPU fp16 autocast with a fixed loss scale), NCHW, one forward pass per
resolution, Sinkhorn, loss, and LARC as a loop over tensors. Ours: `Trainer.train_step` with
the precision and memory format that `auto` selects, on the same uint8 views; both include the
normalisation. Rounds alternate; the first is a warm-up. Also reports the share of our step that
codes, loss and optimizer take.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import unfreeze
from drawing import draw_rounds
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.data.sources.open import open_source
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.runs.pretraining.setup import build_trainer
from unfreeze.runtime.device import pick_device, pick_precision
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.model import SwAV
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks import TaskContext
from unfreeze.training.compute import ComputeContext
from unfreeze.training.trainer import Trainer

PHOTO = {
    "size_crops": (224, 96),
    "nmb_crops": (2, 6),
    "min_scale_crops": (0.14, 0.05),
    "max_scale_crops": (1.0, 0.14),
}
SMALL = {
    "size_crops": (32,),
    "nmb_crops": (2,),
    "min_scale_crops": (0.2,),
    "max_scale_crops": (1.0,),
}
CASES: dict[str, dict[str, Any]] = {
    "resnet18, 2x224 + 6x96": {"arch": "resnet18", "batch_size": 8, **PHOTO},
    "resnet18 small stem, 2x32": {"arch": "resnet18", "stem": "small", "batch_size": 32, **SMALL},
    "resnet50, 2x224 + 6x96": {"arch": "resnet50", "batch_size": 4, **PHOTO},
}
K = 300
SCALE = 1024.0  # loss scale in fp16, against underflow of gradients


def network(how: dict[str, Any], s: PretrainSettings, prototypes: int = K) -> SwAV:
    """The network, with the same random initialization for both."""
    torch.manual_seed(0)
    backbone = build(how["arch"], stem=how.get("stem", "imagenet"))
    width = remove_head(backbone)
    return SwAV(backbone, width, hidden=2048, feat_dim=s.feat_dim, prototypes=prototypes)


def settings(how: dict[str, Any]) -> PretrainSettings:
    """The published values, with K prototypes and no queue."""
    return PretrainSettings(
        **{name: how[name] for name in PHOTO},
        batch_size=how["batch_size"],
        nmb_prototypes=K,
        queue_length=0,
        freeze_prototypes_niters=0,
        hidden_mlp=2048,
        optimizer="larc",
        epochs=100,
        warmup_epochs=0,
    )


class Plain:
    """A plain SwAV training step."""

    def __init__(self, model: SwAV, device: torch.device, scale: float | None = None) -> None:
        self.model, self.device = model.to(device).train(), device
        self.half = device.type == "cuda" and scale is None
        self.scale = SCALE if self.half else 1.0
        self.dtype, self.rate = model.prototypes.weight.dtype, 0.1
        self.momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        self.mean = torch.tensor(MEAN, device=device)[:, None, None]
        self.std = torch.tensor(STD, device=device)[:, None, None]

    def __call__(self, views: list[torch.Tensor]) -> torch.Tensor:
        """Run one step; returns the loss."""
        model = self.model
        with torch.no_grad():
            model.prototypes.weight.copy_(F.normalize(model.prototypes.weight, dim=1))
        inputs = [self._normalised(view.to(self.device)) for view in views]
        sizes = sorted({v.shape[-1] for v in inputs}, reverse=True)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            h = torch.cat(
                [model.backbone(torch.cat([v for v in inputs if v.shape[-1] == s])) for s in sizes]
            )
            Z = F.normalize(model.projection_head(h), dim=1)
            scores = Z @ model.prototypes.weight.T
        scores = scores.to(self.dtype).chunk(len(views))
        loss = torch.zeros((), device=self.device)
        for i in (0, 1):
            with torch.no_grad():
                Q = torch.exp(scores[i] / 0.05).T
                Q = Q / Q.sum()
                for _ in range(3):
                    Q = Q / Q.sum(dim=1, keepdim=True) / Q.shape[0]
                    Q = Q / Q.sum(dim=0, keepdim=True) / Q.shape[1]
                Q = (Q * Q.shape[1]).T
            others = [s for v, s in enumerate(scores) if v != i]
            loss = loss - sum(
                (Q * F.log_softmax(s / 0.1, dim=1)).sum(dim=1).mean() for s in others
            ) / len(others)
        loss = loss / 2
        (loss * self.scale).backward()
        self._update()
        return loss.detach()

    def _normalised(self, view: torch.Tensor) -> torch.Tensor:
        if view.is_floating_point():
            return view  # normalised already
        return (view.permute(0, 3, 1, 2).contiguous().to(self.dtype) / 255 - self.mean) / self.std

    @torch.no_grad()
    def _update(self) -> None:
        for name, p in self.model.named_parameters():
            if p.grad is None:
                continue
            gradient = p.grad / self.scale
            ratio = 0.001 * p.norm() / (gradient.norm() + 1e-6 * p.norm() + 1e-8)
            step = (gradient + 1e-6 * p) * (ratio if p.norm() > 0 else 1.0)
            self.momenta[name].mul_(0.9).add_(step)
            p.sub_(self.rate * self.momenta[name])
            p.grad = None


def ours(
    how: dict[str, Any], device: torch.device, folder: str, precision: str = "auto"
) -> Trainer:
    """A trainer before its first step."""
    chosen = plan(settings(how), DatasetStats(10_000, 256, device.type))
    s = chosen.settings
    precision, _ = pick_precision(precision, device)
    loader = Loader(
        ImageDataset(build_index(open_source("digits"))),
        MultiCropTransform(0, view_specs(s)),
        batch_size=s.batch_size or 1,
        seed=0,
        drop_last=True,
    )
    compute = ComputeContext(device, precision, MEAN, STD)
    model = network(how, s)
    width = next(model.projection_head.parameters()).shape[1]
    task = SwAVTask(TaskContext(model.backbone, width, s, loader.positions, Distributed()))
    task.model = model
    return build_trainer(task, chosen, loader, RunFolder(folder, writes=False), compute)


def batch_of(views: list[torch.Tensor]) -> Batch:
    """A batch of views, each uint8 `[B, S, S, 3]`."""
    count = len(views[0])
    return Batch(0, 0, torch.arange(count).numpy(), torch.zeros(count), views)


def shares(trainer: Trainer, batch: Batch) -> float:
    """Share of a step's time that codes, loss and optimizer take, on the CPU."""
    inside = 0.0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **named: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            result = work(*inputs, **named)
            inside += time.perf_counter() - began
            return result

        return call

    task = trainer.task
    assert isinstance(task, SwAVTask)
    parts = (task.assignment, "codes"), (task.assignment, "loss"), (trainer.guard, "update")
    for owner, name in parts:
        setattr(owner, name, timed(getattr(owner, name)))
    began = time.perf_counter()
    for _ in range(3):
        trainer.train_step(batch)
        trainer.state.step += 1
    total = time.perf_counter() - began
    for owner, name in parts:
        delattr(owner, name)
    return inside / total


def measured(
    how: dict[str, Any], device: torch.device, rounds: int, steps: int, precision: str = "auto"
) -> dict[str, Any]:
    """Images per second of both, and the ratio."""
    views = [
        torch.randint(0, 256, (how["batch_size"], size, size, 3), dtype=torch.uint8)
        for size, count in zip(how["size_crops"], how["nmb_crops"], strict=True)
        for _ in range(count)
    ]
    if device.type == "cuda":
        views = [view.pin_memory() for view in views]  # as from the loader
    with tempfile.TemporaryDirectory() as folder:
        trainer = ours(how, device, folder, precision)
        plain = Plain(network(how, settings(how)), device)
        batch = batch_of(views)

        def own() -> None:
            for _ in range(steps):
                loss = trainer.train_step(batch)
                trainer.state.step += 1
            float(loss)

        def theirs() -> None:
            for _ in range(steps):
                loss = plain(views)
            float(loss)

        took: dict[str, list[float]] = {"plain": [], "ours": []}
        for turn in range(rounds + 1):
            for name, work in (("plain", theirs), ("ours", own)):
                began = time.perf_counter()
                work()
                if turn:
                    took[name].append((time.perf_counter() - began) / steps)
        share = shares(trainer, batch) if device.type == "cpu" else None
        precision = trainer.compute.precision
    B = how["batch_size"]
    ratios = [a / b for a, b in zip(took["plain"], took["ours"], strict=True)]
    return {
        "plain": round(B / statistics.median(took["plain"]), 2),
        "ours": round(B / statistics.median(took["ours"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(r, 2) for r in ratios],
        "rounds": {name: [round(B / s, 2) for s in values] for name, values in took.items()},
        "codes_loss_optimizer": None if share is None else round(share, 4),
        "precision": precision,
        "batch": B,
    }


def main() -> None:
    """Run all cases and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--batch-factor", type=int, default=1, help="larger batches, for a GPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, rows = pick_device(args.device), {}
    for name in args.cases:
        how = CASES[name]
        sized = {**how, "batch_size": how["batch_size"] * args.batch_factor}
        rows[name] = row = measured(sized, device, args.rounds, args.steps, args.precision)
        share = row["codes_loss_optimizer"]
        overhead = "" if share is None else f", codes, loss and optimizer {100 * share:.1f} %"
        print(
            f"{name:28} plain {row['plain']:8.1f}  ours {row['ours']:8.1f} images/s  "
            f"{row['ratio']:.2f} x ({row['precision']}){overhead}",
            flush=True,
        )
    report = {
        "device": str(device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "cases": rows,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        rounds = {name: row["rounds"] for name, row in rows.items()}
        draw_rounds(args.plot, rounds, "images/s", peer="plain")


if __name__ == "__main__":
    main()
