"""Measure one point of `growth.py` in its own process: JSON in, JSON out.

Example: `python benchmarks/growing.py '{"what": "step", "prototypes": 3000, "rounds": 5}'`.
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

from unfreeze.commands.pretrain import run_pretrain
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.runs.pretraining.setup import build_trainer
from unfreeze.runtime.console import ProgressCallback, QuietConsole
from unfreeze.runtime.device import pick_device, pick_precision
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder, read_metrics
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.queue import FeatureQueue
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks import TaskContext
from unfreeze.training.compute import ComputeContext
from unfreeze.training.trainer import Trainer

ARCH, SIDE, BATCH, K, WIDTH = "unfreeze/tiny", 16, 64, 300, 128
WARM = 3  # warm-up steps, not counted
FIXED: dict[str, Any] = {  # values that the auto recipe derives from the number of images
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
    """Raised after the first step to stop the run."""


class UntilFirstStep(QuietConsole):
    """A console that stops a run after its first step."""

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[ProgressCallback]:
        """Count training steps only."""

        def advance(steps: int, text: str = "") -> None:
            if label == "pretrain":
                raise FirstStep

        yield advance


def peak() -> float:
    """Peak memory of this process, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, excludes the parent process
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def start(data: str, device: str = "cpu") -> dict[str, float]:
    """Seconds from the call of `pretrain` to the end of its first step, and of the index."""
    began = time.process_time()
    count = len(build_index(open_source(data), strange_classes=True))
    index = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        values = {"data": data, "out": f"{folder}/run", "store": "off", "device": device, **FIXED}
        settings = load_settings(PretrainSettings, values)
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.suppress(FirstStep):
            run_pretrain(settings, UntilFirstStep())
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"images": count, "index": index, "seconds": took, "processor": cpu}


def step(
    *,
    rounds: int,
    crops: int = 2,
    prototypes: int = K,
    queue: int = 0,
    batch: int = BATCH,
    device: str = "cpu",
) -> dict[str, float]:
    """Seconds of a training step and of making its views: the fastest after the warm-up."""
    where = pick_device(device)
    # CPU time of one thread: other programs on a shared machine change it little
    clock = time.process_time if where.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, where, crops, prototypes, queue, batch)
        took: dict[str, list[float]] = {"seconds": [], "views": []}
        for turn in range(-WARM, rounds):
            began = clock()
            views = trainer.loader.dataset[(0, 0, trainer.loader.positions[:batch])]
            made_views = clock()
            loss = trainer.train_step(views)
            trainer.state.step += 1
            float(loss)
            if turn >= 0:
                took["views"].append(made_views - began)
                took["seconds"].append(clock() - made_views)
        assert isinstance(trainer.task, SwAVTask)
        filled = trainer.task.assignment.queue
        if queue and not (filled and filled.full):
            raise SystemExit("The queue is not full.")
    if where.type == "cuda":
        took["device_mib"] = [torch.cuda.max_memory_allocated() / 2**20]
    return {name: min(values) for name, values in took.items()}


def make_trainer(
    folder: str, where: torch.device, crops: int, prototypes: int, queue: int, batch: int
) -> Trainer:
    """A trainer on digits with a full queue, and a small network so that other costs show."""
    values = {**FIXED, "nmb_crops": (crops,), "nmb_prototypes": prototypes, "batch_size": batch}
    values |= {"queue_length": queue, "epoch_queue_starts": 0, "freeze_prototypes_niters": 0}
    chosen = plan(load_settings(PretrainSettings, values), DatasetStats(10_000, SIDE, where.type))
    s = chosen.settings
    torch.manual_seed(0)
    backbone = build(ARCH)
    width = remove_head(backbone)
    images = ImageDataset(build_index(open_source("digits")))
    loader = Loader(
        images,
        MultiCropTransform(0, view_specs(s)),
        batch_size=min(batch, len(images)),
        seed=0,
        drop_last=True,
    )
    precision, _ = pick_precision("auto", where)
    run, compute = RunFolder(folder, writes=False), ComputeContext(where, precision, MEAN, STD)
    task = SwAVTask(TaskContext(backbone, width, s, loader.positions, Distributed()))
    if queue:
        task.assignment.queue = features = FeatureQueue(2, queue, WIDTH).to(where)
        features.push([F.normalize(torch.randn(queue, WIDTH), dim=1) for _ in range(2)])
    return build_trainer(task, chosen, loader, run, compute)


def processes(data: str, epochs: int = 3, device: str = "cpu") -> dict[str, float]:
    """Seconds of a step in the last epoch; the launcher sets the number of processes."""
    # one run folder for all processes; images are cached in memory, so reading does not count
    out, ends = Path(data).with_suffix(".run"), []
    values = {**FIXED, "data": data, "out": str(out), "epochs": epochs, "device": device}
    values |= {"batch_size": 256, "tune": "off", "store": "memory", "watch_every": 0}
    settings = load_settings(PretrainSettings, values | {"overwrite": True})
    result = run_pretrain(
        settings, QuietConsole(), on_epoch=lambda *_: ends.append(time.process_time())
    )
    each = result.steps // epochs
    lines = [line for line in read_metrics(out) if line["split"] == "train"][-each:]
    took = [line["seconds_data"] + line["seconds_step"] for line in lines]
    cpu = [(b - a) / each for a, b in itertools.pairwise(ends)]  # rank 0 only
    values = {"seconds": min(took), "processor": min(cpu, default=0.0), "shared": 0.0}
    if result.processes > 1:
        torch.distributed.barrier()  # while all processes are alive
        values["shared"] = shared() * (1 - 1 / result.processes)
        torch.distributed.barrier()
    return {"processes": result.processes, **values}


def shared() -> float:
    """MiB that this process shares with others: torch's libraries."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return 0.0
    return int(re.search(r"Shared_Clean: +(\d+) kB", rollup.read_text())[1]) / 1024


WHAT = {"start": start, "step": step, "processes": processes}


def point(what: str, **options: Any) -> dict[str, float]:
    """The measured values, with the peak memory of this process, MiB."""
    values = WHAT[what](**options)
    return {**{name: float(f"{v:.5g}") for name, v in values.items()}, "mib": round(peak(), 1)}


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
