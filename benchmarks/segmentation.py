"""Segmentation from pretrained encoder weights, beside a plain loop of segmentation_models_pytorch.

    python benchmarks/segmentation.py --archive camvid-subset.zip --weights efficientnet-lite0.pth

`--archive` holds `images/` and `masks/` with the splits train, val and test. Each way of training
(`frozen`: decoder and head; `last`: the encoder's last stage as well; `full`; `scratch`: random
weights) is run by `unfreeze finetune` and by the plain loop in turn: the same network, weights,
epochs, batch size, optimizer, learning rate, cosine schedule, loss and input size, weights of the
last epoch. The plain loop is written as tutorials write it: Pillow, torchvision's transforms on
image and mask, a DataLoader, `freeze_encoder()`. Both are evaluated by the same function on the
test images at their own size. `images_per_second` is training alone, with reading.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import unfreeze
from records import spent
from unfreeze.models.segmentation import load_encoder
from unfreeze.models.stages import stages
from unfreeze.tasks.segmentation.masks import IGNORED, read_class_table
from unfreeze.tasks.segmentation.metrics import pixel_confusion, pixel_metrics, predicted_ids

WAYS = ("frozen", "last", "full", "scratch")
RESAMPLES = 1000


class Scenes(Dataset):
    """Images and masks of a split, as float32 [3, h, w] and class ids int64 [h, w]."""

    def __init__(self, folder: Path, split: str, table: Any, transform: Any) -> None:
        self.images = sorted((folder / "images" / split).iterdir())
        self.masks = [folder / "masks" / split / f"{path.stem}.png" for path in self.images]
        self.table, self.transform = table, transform

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, position: int) -> np.ndarray:
        """Class ids at the image's own size."""
        with Image.open(self.masks[position]) as mask:
            return self.table.ids(np.asarray(mask).astype(np.int64), self.masks[position].name)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.images[position]) as file:
            image = tv_tensors.Image(file.convert("RGB"))
        mask = tv_tensors.Mask(torch.from_numpy(self.mask(position)))
        view, target = self.transform(image, mask)
        return view, target.long()


def transforms(size: tuple[int, int], mean: Any, std: Any) -> tuple[Any, Any]:
    """(training, evaluation): crops of the same area and colours of the same strength as ours."""
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    ratio = size[1] / size[0]
    crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(0.75 * ratio, ratio / 0.75))
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.05)], p=0.8)
    train = v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, *last])
    return train, v2.Compose([v2.Resize(size), *last])


def encoder_weights(network: Any, arch: str, weights: str) -> None:
    """Fill the encoder as `finetune` does: of this, the plain loop has no equal."""
    from unfreeze.models.build import build
    from unfreeze.models.load_weights import load_weights
    from unfreeze.models.segmentation import backbone_arch

    name = backbone_arch(arch)
    plain = build(name)
    load_weights(plain, weights, arch=name)
    load_encoder(network, plain)


def plain_loop(way: str, seed: int, s: argparse.Namespace, folder: Path, table: Any, wants: Any):
    """(network, seconds of training) as a tutorial trains it."""
    torch.manual_seed(seed)
    _, decoder, encoder = s.arch.split("/", 2)
    network = smp.create_model(
        decoder, encoder_name=encoder, encoder_weights=None, classes=len(table.names)
    )
    if way != "scratch":
        encoder_weights(network, s.arch, s.weights)
    if way == "frozen":
        network.freeze_encoder()
    elif way == "last":
        kept = stages(network)[:-1]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not any(stage.owns(name) for stage in kept))
    train, _ = transforms(s.size, wants["mean"], wants["std"])
    loader = DataLoader(
        Scenes(folder, "train", table, train), s.batch_size, shuffle=True, drop_last=False
    )
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORED)
    entropy = torch.nn.CrossEntropyLoss(ignore_index=IGNORED)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, s.lr, weight_decay=1e-4)
    steps = s.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for _ in range(s.epochs):
        network.train()
        for images, masks in loader:
            optimizer.zero_grad()
            logits = network(images)
            (entropy(logits, masks) + dice(logits, masks)).backward()
            optimizer.step()
            schedule.step()
    return network.eval(), time.perf_counter() - began


def test_tables(network: Any, data: Scenes) -> np.ndarray:
    """Confusion matrices [N, C, C] of the images at their own size."""
    tables = []
    with torch.inference_mode():
        for position in range(len(data)):
            truth = data.mask(position)
            logits = network(data[position][0][None])[0]
            ids = predicted_ids(logits, truth.shape)
            tables.append(pixel_confusion(ids, truth, len(data.table.names)))
    return np.stack(tables)


def measured(tables: np.ndarray, seconds: float, images: int) -> dict[str, Any]:
    """The mIoU with a bootstrap interval over images, and speed."""
    draw, count = np.random.default_rng(0), len(tables)
    drawn = [
        pixel_metrics(tables[draw.integers(0, count, count)].sum(0))["miou"]
        for _ in range(RESAMPLES)
    ]
    return {
        "miou": pixel_metrics(tables.sum(0))["miou"],
        "interval": np.quantile(drawn, (0.025, 0.975)).tolist(),
        "seconds": seconds,
        "images_per_second": images / seconds,
    }


def ours(way: str, seed: int, s: argparse.Namespace, data: str, out: Path) -> Any:
    """The result of `finetune` with the settings of the plain loop."""
    freeze = {"frozen": "all", "last": f"stage:{s.stages - 2}"}.get(way, "none")
    return unfreeze.finetune(
        data,
        out=str(out),
        arch=s.arch,
        weights="none" if way == "scratch" else s.weights,
        freeze=freeze,
        image_size=min(s.size),
        epochs=s.epochs,
        batch_size=s.batch_size,
        optimizer="adamw",
        lr=s.lr,
        seed=seed,
        select="last",
        mean=s.mean,
        std=s.std,
        precision=s.precision,
        progress=False,
    )


def main() -> None:
    """Run all ways and seeds, alternating, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--arch", default="smp/unet/tu-tf_efficientnet_lite0")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), help="height, width")
    parser.add_argument("--mean", type=float, nargs=3, default=(0.5, 0.5, 0.5))
    parser.add_argument("--std", type=float, nargs=3, default=(0.5, 0.5, 0.5))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", help="of ours; the plain loop: float32")
    parser.add_argument("--json")
    s = parser.parse_args()
    torch.set_num_threads(s.threads)
    from unfreeze.models.build import build

    s.size, s.stages = tuple(s.size), len(stages(build(s.arch)))
    results: dict[str, dict[str, list[dict[str, Any]]]] = {way: {} for way in s.ways}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        with zipfile.ZipFile(s.archive) as archive:
            archive.extractall(folder)
        folder = next(folder.rglob("images")).parent
        table = read_class_table((folder / "classes.csv").read_bytes(), "classes.csv", None)
        wants = {"mean": s.mean, "std": s.std}
        test = Scenes(folder, "test", table, transforms(s.size, s.mean, s.std)[1])
        images = s.epochs * len(list((folder / "images" / "train").iterdir()))
        for seed in s.seeds:
            for way in s.ways:
                run = Path(scratch) / f"{way}-{seed}"
                found = ours(way, seed, s, str(folder), run)
                evaluated = unfreeze.evaluate(str(run), str(folder), split="test", progress=False)
                trained = spent(run, 0)
                results[way].setdefault("ours", []).append(
                    {
                        "miou": evaluated.miou,
                        "interval": evaluated.interval,
                        "seconds": found.seconds,
                        "images_per_second": images / (trained.data + trained.step),
                    }
                )
                network, seconds = plain_loop(way, seed, s, folder, table, wants)
                tables = test_tables(network, test)
                results[way].setdefault("plain", []).append(measured(tables, seconds, images))
                for name, of_loop in results[way].items():
                    row = of_loop[-1]
                    print(
                        f"{way:8} seed {seed} {name:6} mIoU {row['miou']:.3f} "
                        f"[{row['interval'][0]:.3f}, {row['interval'][1]:.3f}] "
                        f"{row['images_per_second']:.2f} images/s",
                        flush=True,
                    )
                write(s, results)
    for way, rows in results.items():
        speeds = [
            a["images_per_second"] / b["images_per_second"]
            for a, b in zip(rows["ours"], rows["plain"], strict=True)
        ]
        means = {name: statistics.mean(r["miou"] for r in of) for name, of in rows.items()}
        print(f"{way:8} {means} images/s ratio {statistics.median(speeds):.2f}")


def write(s: argparse.Namespace, results: Any) -> None:
    """Write what was measured so far."""
    if s.json:
        about = {
            name: value
            for name, value in vars(s).items()
            if name not in ("json", "archive", "weights")
        }
        machine = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        Path(s.json).write_text(json.dumps({**about, **machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
