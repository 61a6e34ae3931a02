"""From files on the disk to updated weights: images a second, ours beside lightly's SwAV.

    pip install lightly    # 1.6.0; any folder that holds it on PYTHONPATH does too
    python benchmarks/end_to_end.py --images photographs/ --json end-to-end.json

A ResNet-18 on JPEG photographs, 2x224 + 6x96. lightly: its transform, head, prototypes and loss in
the plain loop of its example (float32, one pass a view, Adam), pictures read by `--workers` loader
processes. Ours: `unfreeze.pretrain` as it comes, with the same crops, batch and prototypes. Each
round trains both on the same files, in turn; start-up, the check of the files and the first epoch
are not counted. CPU seconds are of the process and its children, ours with start-up and check.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import lightly
import torch
import torchvision
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.transforms import SwaVTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import unfreeze
from drawing import draw_rounds
from unfreeze.runtime.runfolder import read_metrics

K, EPOCHS = 128, 2


class Files(Dataset):
    """Views of pictures that are read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.transform = files, SwaVTransform()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> list[torch.Tensor]:
        return self.transform(Image.open(self.files[place]).convert("RGB"))


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def theirs(files: list[Path], batch: int, workers: int) -> tuple[float, float]:
    """(images a second, CPU seconds an image) of the second epoch."""
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    head, prototypes = SwaVProjectionHead(512, 512, 128), SwaVPrototypes(128, n_prototypes=K)
    modules = nn.ModuleList([backbone, head, prototypes])
    optimizer, criterion = torch.optim.Adam(modules.parameters(), lr=0.001), SwaVLoss()
    loader = DataLoader(
        Files(files), batch_size=batch, shuffle=True, drop_last=True, num_workers=workers
    )
    for _ in range(EPOCHS):
        began, spent = time.perf_counter(), cpu_seconds()
        for views in loader:
            prototypes.normalize()
            scores = [
                prototypes(nn.functional.normalize(head(backbone(view)), dim=1, p=2))
                for view in views
            ]
            loss = criterion(scores[:2], scores[2:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        took = time.perf_counter() - began
    count = len(files) // batch * batch
    return count / took, (cpu_seconds() - spent) / count


def ours(folder: Path, count: int, batch: int, workers: int) -> tuple[float, float, float]:
    """(images a second, CPU seconds an image, share of a step that waits for data)."""
    steps = count // batch
    with tempfile.TemporaryDirectory() as place:
        spent = cpu_seconds()
        unfreeze.pretrain(
            str(folder),
            out=f"{place}/run",
            arch="resnet18",
            image_size=224,
            size_crops=(224, 96),
            nmb_crops=(2, 6),
            min_scale_crops=(0.14, 0.05),
            max_scale_crops=(1.0, 0.14),
            augment="photo",
            nmb_prototypes=K,
            batch_size=batch,
            epochs=EPOCHS,
            workers=workers,
            watch_every=0,
            on_collapse="ignore",
            device="cpu",
        )
        spent = cpu_seconds() - spent
        lines = [line for line in read_metrics(f"{place}/run") if line["split"] == "train"][steps:]
    data = sum(line["seconds_data"] for line in lines)
    step = sum(line["seconds_step"] for line in lines)
    return len(lines) * batch / (data + step), spent / (EPOCHS * count), data / (data + step)


def main() -> None:
    """Medians over rounds."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--images", required=True, help="folder of JPEG files")
    ask.add_argument("--count", type=int, default=64)
    ask.add_argument("--batch-size", type=int, default=16)
    ask.add_argument("--workers", type=int, default=1, help="of the loader, for both")
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    ask.add_argument("--json")
    ask.add_argument("--plot")
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    found = sorted(Path(given.images).rglob("*.jp*g"))
    chosen = found[:: max(1, len(found) // given.count)][: given.count]
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / f"{number:04}.jpg")
        files = sorted(folder.iterdir())
        for _ in range(given.rounds):
            rate, cpu = theirs(files, given.batch_size, given.workers)
            own, own_cpu, waiting = ours(folder, len(files), given.batch_size, given.workers)
            rounds.append(
                {
                    "lightly": rate,
                    "lightly_cpu": cpu,
                    "ours": own,
                    "ours_cpu": own_cpu,
                    "waiting": waiting,
                }
            )
            print({name: round(value, 3) for name, value in rounds[-1].items()}, flush=True)
    middle = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    ratio = statistics.median(row["ours"] / row["lightly"] for row in rounds)
    print(f"{ratio:.2f} x lightly; waiting for data {100 * middle['waiting']:.1f} % of a step")
    report = {
        "settings": {k: v for k, v in vars(given).items() if k not in ("images", "json")},
        "processor": platform.processor() or platform.machine(),
        "lightly": lightly.__version__,
        "torch": torch.__version__,
        "unfreeze": unfreeze.__version__,
        "median": middle,
        "ratio": ratio,
        "rounds": rounds,
    }
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        ways = {name: [row[name] for row in rounds] for name in ("lightly", "ours")}
        draw_rounds(given.plot, {"ResNet-18, 2x224 + 6x96": ways}, "images/s", peer="lightly")


if __name__ == "__main__":
    main()
