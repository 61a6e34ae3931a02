"""End-to-end throughput from files on disk to updated weights, ours against a peer.

    pip install lightly    # tested with 1.6.0; a copy on PYTHONPATH works too
    python benchmarks/end_to_end.py --images photographs/ --json end-to-end.json
    python benchmarks/end_to_end.py --images photographs/ --peer plain --device cuda

ResNet-18 on JPEG photographs, 2x224 + 6x96 crops. `lightly`: its transform, head, prototypes and
loss in the loop of its example (float32, one forward pass per view, Adam). `plain`: the transforms
of Pillow and torchvision (benchmarks/plain.py) and a plain training step (benchmarks/step.py; fp16
autocast on a GPU). Both use `--workers` DataLoader workers. Ours: `unfreeze.pretrain` with its
defaults and the same crops, batch size and prototypes. Each round trains both on the same files, in
turn; start-up, validation of the files and the first epoch are excluded. CPU seconds are those of
the process and its finished children; ours include start-up and validation.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import plain
import step
import unfreeze
from drawing import draw_rounds
from records import spent
from unfreeze.runtime.device import pick_device

K = 128
HOW: dict[str, Any] = {"arch": "resnet18", **step.PHOTO}
Views = list[torch.Tensor]
Step = Callable[[Views], object]


class Files(Dataset):
    """A dataset that reads and transforms images on access."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Views]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Views:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


class PlainViews:
    """The views of benchmarks/plain.py for one image."""

    def __init__(self) -> None:
        self.views = plain.Plain().views

    def __call__(self, image: Image.Image) -> Views:
        """Return eight views."""
        return [make(image) for make in self.views]


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def plain_peer(device: torch.device) -> tuple[Callable[[Image.Image], Views], Step]:
    """(transform, training step) of the plain peer."""
    settings = step.settings({**HOW, "batch_size": 2})
    return PlainViews(), step.Plain(step.network(HOW, settings, K), device)


def lightly_peer(device: torch.device) -> tuple[Callable[[Image.Image], Views], Step]:
    """(transform, training step) of lightly's example."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
    from lightly.transforms import SwaVTransform

    torch.manual_seed(0)
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    head, prototypes = SwaVProjectionHead(512, 512, 128), SwaVPrototypes(128, n_prototypes=K)
    modules = nn.ModuleList([backbone, head, prototypes]).to(device)
    optimizer, criterion = torch.optim.Adam(modules.parameters(), lr=0.001), SwaVLoss()

    def update(views: Views) -> None:
        prototypes.normalize()
        scores = [
            prototypes(nn.functional.normalize(head(backbone(view.to(device))), dim=1, p=2))
            for view in views
        ]
        loss = criterion(scores[:2], scores[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return SwaVTransform(), update


PEERS = {"lightly": lightly_peer, "plain": plain_peer}


def theirs(
    files: list[Path], device: torch.device, args: argparse.Namespace
) -> tuple[float, float]:
    """(images per second, CPU seconds per image) of the peer, first epoch excluded."""
    transform, update = PEERS[args.peer](device)
    loader = DataLoader(
        Files(files, transform),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
    )
    took, used, processor = 0.0, 0, 0.0
    for epoch in range(args.epochs):
        began, before = time.perf_counter(), cpu_seconds()
        for views in loader:
            update(views)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if epoch:
            took += time.perf_counter() - began
            processor += cpu_seconds() - before
            used += len(files) // args.batch_size * args.batch_size
    return used / took, processor / used


def ours(
    folder: Path, count: int, device: torch.device, args: argparse.Namespace
) -> tuple[float, float, float]:
    """(images per second, CPU seconds per image, share of a step spent waiting for data)."""
    with tempfile.TemporaryDirectory() as scratch:
        before = cpu_seconds()
        unfreeze.pretrain(
            str(folder),
            out=f"{scratch}/run",
            image_size=224,
            augment="photo",
            nmb_prototypes=K,
            batch_size=args.batch_size,
            epochs=args.epochs,
            workers=args.workers,
            store=args.store,
            watch_every=0,
            on_collapse="ignore",
            precision=args.precision,
            **{**HOW, "device": device.type},
        )
        processor = cpu_seconds() - before
        time_spent = spent(f"{scratch}/run", count // args.batch_size)
    rate = time_spent.steps * args.batch_size / (time_spent.data + time_spent.step)
    return rate, processor / (args.epochs * count), time_spent.waiting


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="per round; the first is excluded")
    parser.add_argument("--workers", type=int, default=1, help="DataLoader workers, for both")
    parser.add_argument("--store", default="auto", help="pixel cache of unfreeze")
    parser.add_argument("--peer", choices=list(PEERS), default="lightly")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    paths = sorted(Path(args.images).rglob("*.jp*g"))
    chosen = paths[:: max(1, len(paths) // args.count)][: args.count]
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / f"{number:04}.jpg")
        files = sorted(folder.iterdir())
        for _ in range(args.rounds):
            rate, processor = theirs(files, device, args)
            our_rate, our_processor, waiting = ours(folder, len(files), device, args)
            rounds.append(
                {
                    args.peer: rate,
                    f"{args.peer}_cpu": processor,
                    "ours": our_rate,
                    "ours_cpu": our_processor,
                    "waiting": waiting,
                }
            )
            print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    middle = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    ratio = statistics.median(row["ours"] / row[args.peer] for row in rounds)
    print(f"{ratio:.2f} x {args.peer}; waiting for data {100 * middle['waiting']:.1f} % of a step")
    report = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("images", "json", "plot")},
        "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "peer": version(args.peer) if args.peer == "lightly" else torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "median": middle,
        "ratio": ratio,
        "rounds": rounds,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        ways = {name: [row[name] for row in rounds] for name in (args.peer, "ours")}
        draw_rounds(args.plot, {"ResNet-18, 2x224 + 6x96": ways}, "images/s", peer=args.peer)


if __name__ == "__main__":
    main()
