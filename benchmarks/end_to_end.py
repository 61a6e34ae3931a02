"""From files on the disk to updated weights: images a second, ours beside a peer.

    pip install lightly    # 1.6.0; any folder that holds it on PYTHONPATH does too
    python benchmarks/end_to_end.py --images photographs/ --json end-to-end.json
    python benchmarks/end_to_end.py --images photographs/ --peer plain --device cuda

A ResNet-18 on JPEG photographs, 2x224 + 6x96. `lightly`: its transform, head, prototypes and loss
in the plain loop of its example (float32, one pass a view, Adam). `plain`: Pillow and torchvision's
transforms (benchmarks/plain.py) and the mathematics written plainly (benchmarks/step.py; on a GPU
fp16 autocast). Both read images by `--workers` loader processes. Ours: `unfreeze.pretrain` as it
comes, with the same crops, batch and prototypes. Each round trains both on the same files, in turn;
start-up, the check of the files and the first epoch are not counted. CPU seconds are of the process
and its children that ended, ours with start-up and check.
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
from unfreeze.runtime.devices import pick_device

K = 128
HOW: dict[str, Any] = {"arch": "resnet18", **step.PHOTO}
Views = list[torch.Tensor]
Step = Callable[[Views], object]


class Files(Dataset):
    """Views of images that are read when they are asked for."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Views]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Views:
        return self.transform(Image.open(self.files[place]).convert("RGB"))


class PlainViews:
    """What benchmarks/plain.py makes of one image."""

    def __init__(self) -> None:
        self.views = plain.Plain().views

    def __call__(self, image: Image.Image) -> Views:
        """Eight views."""
        return [make(image) for make in self.views]


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def plain_peer(device: torch.device) -> tuple[Callable[[Image.Image], Views], Step]:
    """(its transform, its step)."""
    settings = step.settings({**HOW, "batch_size": 2})
    return PlainViews(), step.Plain(step.network(HOW, settings, K), device)


def lightly_peer(device: torch.device) -> tuple[Callable[[Image.Image], Views], Step]:
    """(lightly's transform, the step of its example)."""
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
    files: list[Path], device: torch.device, given: argparse.Namespace
) -> tuple[float, float]:
    """(images a second, CPU seconds an image) of the epochs after the first."""
    transform, update = PEERS[given.peer](device)
    loader = DataLoader(
        Files(files, transform),
        batch_size=given.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=given.workers,
        persistent_workers=given.workers > 0,
        pin_memory=device.type == "cuda",
    )
    took, used, processor = 0.0, 0, 0.0
    for epoch in range(given.epochs):
        began, before = time.perf_counter(), cpu_seconds()
        for views in loader:
            update(views)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if epoch:
            took += time.perf_counter() - began
            processor += cpu_seconds() - before
            used += len(files) // given.batch_size * given.batch_size
    return used / took, processor / used


def ours(
    folder: Path, count: int, device: torch.device, given: argparse.Namespace
) -> tuple[float, float, float]:
    """(images a second, CPU seconds an image, share of a step that waits for data)."""
    with tempfile.TemporaryDirectory() as place:
        before = cpu_seconds()
        unfreeze.pretrain(
            str(folder),
            out=f"{place}/run",
            image_size=224,
            augment="photo",
            nmb_prototypes=K,
            batch_size=given.batch_size,
            epochs=given.epochs,
            workers=given.workers,
            store=given.store,
            watch_every=0,
            on_collapse="ignore",
            **{**HOW, "device": device.type},
        )
        processor = cpu_seconds() - before
        found = spent(f"{place}/run", count // given.batch_size)
    rate = found.steps * given.batch_size / (found.data + found.step)
    return rate, processor / (given.epochs * count), found.waiting


def main() -> None:
    """Medians over rounds."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--images", required=True, help="folder of JPEG files")
    ask.add_argument("--count", type=int, default=64)
    ask.add_argument("--batch-size", type=int, default=16)
    ask.add_argument("--epochs", type=int, default=2, help="of a round; the first is not counted")
    ask.add_argument("--workers", type=int, default=1, help="of the loader, for both")
    ask.add_argument("--store", default="auto", help="whether ours holds decoded images")
    ask.add_argument("--peer", choices=list(PEERS), default="lightly")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    ask.add_argument("--json")
    ask.add_argument("--plot")
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    device = pick_device(given.device)
    found = sorted(Path(given.images).rglob("*.jp*g"))
    chosen = found[:: max(1, len(found) // given.count)][: given.count]
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / f"{number:04}.jpg")
        files = sorted(folder.iterdir())
        for _ in range(given.rounds):
            rate, processor = theirs(files, device, given)
            own, own_processor, waiting = ours(folder, len(files), device, given)
            rounds.append(
                {
                    given.peer: rate,
                    f"{given.peer}_cpu": processor,
                    "ours": own,
                    "ours_cpu": own_processor,
                    "waiting": waiting,
                }
            )
            print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    middle = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    ratio = statistics.median(row["ours"] / row[given.peer] for row in rounds)
    print(f"{ratio:.2f} x {given.peer}; waiting for data {100 * middle['waiting']:.1f} % of a step")
    report = {
        "settings": {k: v for k, v in vars(given).items() if k not in ("images", "json", "plot")},
        "processor": platform.processor() or platform.machine(),
        "peer": version(given.peer) if given.peer == "lightly" else torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "median": middle,
        "ratio": ratio,
        "rounds": rounds,
    }
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        ways = {name: [row[name] for row in rounds] for name in (given.peer, "ours")}
        draw_rounds(given.plot, {"ResNet-18, 2x224 + 6x96": ways}, "images/s", peer=given.peer)


if __name__ == "__main__":
    main()
