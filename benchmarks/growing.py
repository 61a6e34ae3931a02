"""One point of `growth.py`, in a process of its own: asked for and told as JSON.

As in `python benchmarks/growing.py '{"what": "step", "prototypes": 3000, "rounds": 5}'`.
"""

import contextlib
import itertools
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from unfreeze.api.pretrain import run_pretrain
from unfreeze.backbones.build import build
from unfreeze.backbones.head import headless
from unfreeze.data.dataset import ImageDataset
from unfreeze.data.index import build_index
from unfreeze.data.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.data.views.multicrop import MEAN, STD, Cut
from unfreeze.runtime.console import Advance, Quiet
from unfreeze.runtime.devices import pick_device, pick_precision
from unfreeze.runtime.runfolder import RunFolder, read_metrics
from unfreeze.settings.build import layered
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.bank import Bank
from unfreeze.swav.facts import Facts
from unfreeze.swav.model import SwAV
from unfreeze.swav.place import Place
from unfreeze.swav.recipe import plan, view_specs
from unfreeze.swav.trainer import Trainer

ARCH, SIDE, BATCH, K, WIDTH = "unfreeze/tiny", 16, 64, 300, 128
WARM = 3  # steps that are not counted: the first touch of memory is slow
FIXED: dict[str, Any] = {  # what a recipe would choose by the number of images
    "arch": ARCH,
    "image_size": SIDE,
    "size_crops": (SIDE,),
    "nmb_crops": (2,),
    "min_scale_crops": (0.2,),
    "max_scale_crops": (1.0,),
    "batch_size": BATCH,
    "nmb_prototypes": K,
    "hidden_mlp": 128,
    "queue_length": 0,
    "optimizer": "larc",
    "epochs": 10,
}


class FirstStep(Exception):
    """The first step is done; nothing more is wanted."""


class UntilFirstStep(Quiet):
    """Leaves a run after its first step."""

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Only training counts as steps."""

        def advance(steps: int, text: str = "") -> None:
            if label == "pretrain":
                raise FirstStep

        yield advance


def peak() -> float:
    """MiB of memory that this process had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage it says nothing of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def start(data: str, device: str = "cpu") -> dict[str, float]:
    """Seconds from the call of `pretrain` until its first step is done, and those of the index."""
    began = time.process_time()
    count = len(build_index(open_source(data), strange_classes=True))
    index = time.process_time() - began
    with tempfile.TemporaryDirectory() as place:
        asked = {"data": data, "out": f"{place}/run", "store": "off", "device": device, **FIXED}
        settings = layered(PretrainSettings, asked)
        began, own = time.perf_counter(), time.process_time()
        with contextlib.suppress(FirstStep):
            run_pretrain(settings, UntilFirstStep())
        took, own = time.perf_counter() - began, time.process_time() - own
    return {"images": count, "index": index, "seconds": took, "processor": own}


def step(
    *,
    rounds: int,
    crops: int = 2,
    prototypes: int = K,
    queue: int = 0,
    batch: int = BATCH,
    device: str = "cpu",
) -> dict[str, float]:
    """Seconds of a training step, and of cutting its views: the fastest after some not counted."""
    where = pick_device(device)
    # one thread's own time: a processor that is shared changes it little
    clock = time.process_time if where.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        trainer = made(folder, where, crops, prototypes, queue, batch)
        took: dict[str, list[float]] = {"seconds": [], "views": []}
        for turn in range(-WARM, rounds):
            began = clock()
            given = trainer.loader.dataset[(0, 0, trainer.loader.positions[:batch])]
            cut = clock()
            loss, _ = trainer.train_step(given)
            trainer.step += 1
            float(loss)
            if turn >= 0:
                took["views"].append(cut - began)
                took["seconds"].append(clock() - cut)
        if queue and not (trainer.bank and trainer.bank.full):
            raise SystemExit("The queue did not serve.")
    if where.type == "cuda":
        took["device_mib"] = [torch.cuda.max_memory_allocated() / 2**20]
    return {name: min(values) for name, values in took.items()}


def made(
    folder: str, where: torch.device, crops: int, prototypes: int, queue: int, batch: int
) -> Trainer:
    """A trainer on digits with a full queue; the network is small, so that the rest shows."""
    asked = {**FIXED, "nmb_crops": (crops,), "nmb_prototypes": prototypes, "batch_size": batch}
    asked |= {"queue_length": queue, "epoch_queue_starts": 0, "freeze_prototypes_niters": 0}
    chosen = plan(layered(PretrainSettings, asked), Facts(10_000, SIDE, where.type))
    s = chosen.settings
    torch.manual_seed(0)
    backbone = build(ARCH)
    width = headless(backbone)
    model = SwAV(backbone, width, hidden=s.hidden_mlp, feat_dim=WIDTH, prototypes=prototypes)
    images = ImageDataset(build_index(open_source("digits")))
    loader = Loader(
        images,
        Cut(0, view_specs(s)),
        batch_size=min(batch, len(images)),
        seed=0,
        drop_last=True,
    )
    precision, _ = pick_precision("auto", where)
    run, place = RunFolder(folder, writes=False), Place(where, precision, MEAN, STD)
    trainer = Trainer(model, chosen, loader, run, place)
    if queue:
        trainer.assigner.bank = bank = Bank(2, queue, WIDTH).to(where)
        bank.push([F.normalize(torch.randn(queue, WIDTH), dim=1) for _ in range(2)])
    return trainer


def processes(data: str, epochs: int = 3, device: str = "cpu") -> dict[str, float]:
    """Seconds of a step in the last epoch; the launcher says of how many processes this is one."""
    # one folder for all of them; images are held, so that reading does not count
    out, ends = Path(data).with_suffix(".run"), []
    asked = {**FIXED, "data": data, "out": str(out), "epochs": epochs, "device": device}
    asked |= {"batch_size": 256, "tune": "off", "store": "memory", "watch_every": 0}
    settings = layered(PretrainSettings, asked | {"overwrite": True})
    done = run_pretrain(settings, Quiet(), on_epoch=lambda *_: ends.append(time.process_time()))
    each = done.steps // epochs
    lines = [line for line in read_metrics(out) if line["split"] == "train"][-each:]
    took = [line["seconds_data"] + line["seconds_step"] for line in lines]
    own = [(b - a) / each for a, b in itertools.pairwise(ends)]  # only the first one is told
    found = {"seconds": min(took), "processor": min(own, default=0.0), "shared": 0.0}
    if done.processes > 1:
        torch.distributed.barrier()  # while every process is there
        found["shared"] = shared() * (1 - 1 / done.processes)
        torch.distributed.barrier()
    return {"processes": done.processes, **found}


def shared() -> float:
    """MiB that this process has in common with others: torch's libraries."""
    told = Path("/proc/self/smaps_rollup")
    if not told.exists():
        return 0.0
    return int(re.search(r"Shared_Clean: +(\d+) kB", told.read_text())[1]) / 1024


WHAT = {"start": start, "step": step, "processes": processes}


def point(what: str, **asked: Any) -> dict[str, float]:
    """What was found, with the most memory that this process had, MiB."""
    found = WHAT[what](**asked)
    return {**{name: float(f"{v:.5g}") for name, v in found.items()}, "mib": round(peak(), 1)}


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
