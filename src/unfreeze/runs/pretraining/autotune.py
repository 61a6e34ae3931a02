"""`--tune`: measures the fastest threads, precision, memory layout and workers before step 0."""

import contextlib
import gc
import math
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from unfreeze.checkpoints.state import has_last
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.cache.folder import TUNING_CACHE
from unfreeze.data.loading.loader import Batch
from unfreeze.data.loading.workers import cannot_start_workers
from unfreeze.runs.pretraining.tuning_cache import (
    StoredTuning,
    load_tuning,
    store_tuning,
    tuning_key,
)
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import fast_precisions
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.text_layout import TextTable
from unfreeze.runtime.threads import (
    ThreadCount,
    processors,
    restored_threads,
    set_threads,
    threads_set_by,
)
from unfreeze.swav.auto_recipe import PretrainRecipe
from unfreeze.swav.throughput import (
    SECONDS,
    StepConfig,
    StepTime,
    TuningResult,
    TuningScope,
    probe_ways,
)
from unfreeze.training.compute import ComputeContext
from unfreeze.training.trainer import PretrainTrainer

Make = Callable[[StepConfig], PretrainTrainer]
GIVEN = "given"
_BATCHES = 100  # more than the probe takes from one stream


def default_way(
    s: PretrainSettings, compute: ComputeContext, neighbours: int, operations: float | None
) -> StepConfig:
    """The defaults without measurement; `neighbours`: processes of this run on this machine.

    `operations`: FLOPs of the forward pass over one process's part of a batch.
    """
    threads, _ = default_threads(compute.device, operations)
    workers = _workers(s, compute.device, neighbours)
    return StepConfig(compute.precision, compute.layout, threads, workers)


def default_threads(device: torch.device, operations: float | None) -> tuple[int, str]:
    """(threads, reason) of a run without measurement."""
    now = ThreadCount.now()
    return now.for_batches(operations) if device.type == "cpu" else (now.most, "")


def _workers(s: PretrainSettings, device: torch.device, neighbours: int) -> int:
    if s.views_on == "device":
        return 0
    if s.workers is not None:
        return s.workers
    # on the CPU the network already uses every core; launchers set one thread per process
    cores = (os.cpu_count() or 1) // neighbours
    return min(16, max(1, cores)) if device.type == "cuda" else 0


def scope_of(s: PretrainSettings, device: torch.device) -> TuningScope:
    """What may be tried on this machine, without the settings that are given."""
    fixed = {}
    if s.workers is not None:
        fixed["workers"] = GIVEN
    if s.views_on == "device":
        fixed["workers"] = "crops are computed on the device"
    elif why := cannot_start_workers():
        fixed["workers"] = why
    if s.precision != "auto":
        fixed["precision"] = GIVEN
    if variable := threads_set_by():
        fixed["threads"] = f"set by {variable}"
    return TuningScope(device.type, fast_precisions(device), processors(), fixed)


def plan_line(s: PretrainSettings, device: torch.device, world: int) -> dict[str, str]:
    """The plan line about the measurement; {} if there is none. `s`: all settings, derived too."""
    if s.tune == "off":
        return {}
    if world > 1:
        return {"tune": "nothing is measured with several processes"}
    what = "threads, precision, layout and workers that are not given"
    if stored := _stored_tuning(s, tuning_key(s, scope_of(s, device), device)):
        return {"tune": f"{what} were {stored.sentence}; --tune again measures anew"}
    return {"tune": f"{what} are measured before the first step, within {SECONDS:g} s"}


def _stored_tuning(s: PretrainSettings, key: dict[str, Any]) -> StoredTuning | None:
    return load_tuning(key) if s.tune == "auto" else None


@dataclass(frozen=True)
class ComputeSettings:
    """The settings a run computes with; `record`: for config.toml, None if nothing was measured.

    `threads`: reason for their number. `measured`: (images of the largest measured step, seconds).
    `source`: where the settings come from, if not from a measurement of this run. `not_stored`:
    why a measurement could not be stored.
    """

    way: StepConfig
    record: dict[str, Any] | None = None
    threads: str = ""
    measured: tuple[int, StepTime] | None = None
    source: str = ""
    not_stored: str = ""

    @property
    def reasons(self) -> dict[str, str]:
        """The reason of each setting that was selected."""
        measured = dict(self.record["reasons"]) if self.record else {}
        return {**measured, **({"threads": self.threads} if self.threads else {})}

    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables `tuned` of config.toml."""
        if self.record is None:
            return {}
        inner = {name: value for name, value in self.record.items() if isinstance(value, dict)}
        plain = {name: value for name, value in self.record.items() if name not in inner}
        return {"tuned": plain, **{f"tuned.{name}": value for name, value in inner.items()}}


def choose_way(
    plan: PretrainRecipe,
    compute: ComputeContext,
    run: RunFolder,
    processes: Distributed,
    make: Make,
    *,
    operations: float | None,
    previous: int | None = None,
) -> ComputeSettings:
    """The settings to compute with: those of the resumed run, else stored or measured ones.

    The defaults where nothing is measured.

    Sets the number of threads. `operations`: as in `default_way`; `previous`: threads of the
    checkpoint to resume from.
    """
    s = plan.settings
    usual = default_way(s, compute, processes.launch.local_world, operations)
    scope = scope_of(s, compute.device)
    record = _stored_table(run) if s.resume else None
    if record is not None:
        result = ComputeSettings(_recorded_way(record, usual, scope, processes.world), record)
    elif s.tune == "off" or processes.world > 1 or not plan.steps or _has_checkpoint(run):
        threads, why = default_threads(compute.device, operations)
        result = ComputeSettings(usual, threads=f"{threads}: {why}" if why else "")
    else:
        result = _stored_or_measured(plan, usual, scope, make, compute.device)
    if previous is not None and processes.world == 1:
        threads = ThreadCount.now().to_resume(previous)
        result = replace(result, way=replace(result.way, threads=threads))
    set_threads(result.way.threads)
    return result


def _stored_or_measured(
    plan: PretrainRecipe, usual: StepConfig, scope: TuningScope, make: Make, device: torch.device
) -> ComputeSettings:
    """The settings stored for this machine and network, else measured ones, which are stored."""
    key = tuning_key(plan.settings, scope, device)
    if stored := _stored_tuning(plan.settings, key):
        source = stored.sentence
        return ComputeSettings(stored.way, stored.record, measured=stored.measured, source=source)
    choice = _measure(plan, usual, scope, make, device)
    # a longer run would measure more
    failed = "" if choice.short_run or not choice.rounds else store_tuning(key, choice)
    record = choice.record(scope.device)
    return ComputeSettings(choice.way, record, measured=choice.measured, not_stored=failed)


def show_choice(tuning: ComputeSettings, console: Console) -> None:
    """Show a line for each setting, and the time or the date of the measurement."""
    if tuning.record is None:
        return
    if not tuning.record["steps"]:
        console.say("Threads, precision and workers were not measured; config.toml has the reason.")
        return
    if tuning.not_stored:
        console.warn(
            f"The fastest settings could not be stored for later runs in {TUNING_CACHE.folder}: "
            f"{tuning.not_stored}. Set UNFREEZE_CACHE to a folder that can be written."
        )
    if tuning.record.get("cached"):
        when = tuning.record["measured_on"]
        console.say(f"Settings measured on this machine on {when} (--tune again measures anew):")
    else:
        console.say(f"Fastest settings, measured in {tuning.record['probe_seconds']:g} s:")
    console.table(TextTable(("", ""), list(tuning.reasons.items())))


def _has_checkpoint(run: RunFolder) -> bool:
    return has_last(run.file("checkpoints"))


def _stored_table(run: RunFolder) -> dict[str, Any] | None:
    config = run.file("config.toml")
    if not config.exists():
        return None
    table: dict[str, Any] | None = tomllib.loads(config.read_text(encoding="utf-8")).get("tuned")
    return table


def _recorded_way(
    record: dict[str, Any], usual: StepConfig, scope: TuningScope, world: int
) -> StepConfig:
    """The recorded settings, overridden by those given now, if the type of device is the same."""
    if record["device"] != scope.device:
        return usual
    most = scope.processors
    recorded = {
        "precision": record["precision"],
        "layout": record["layout"],
        "threads": min(record["threads"], most) if world == 1 else usual.threads,
        "workers": min(record["workers"], most) if world == 1 else usual.workers,
    }
    return replace(usual, **{knob: v for knob, v in recorded.items() if knob not in scope.given})


def _measure(
    plan: PretrainRecipe, usual: StepConfig, scope: TuningScope, make: Make, device: torch.device
) -> TuningResult:
    """Measure and select; random state, weights and threads are unchanged afterwards."""
    s = plan.settings
    rows = min(2 * s.accumulate, s.batch_size or 0), s.batch_size or 0
    cuda = [device] if device.type == "cuda" else []
    steps = ProbeSteps(make)
    with torch.random.fork_rng(devices=cuda), restored_threads(), contextlib.closing(steps):
        return probe_ways(usual, scope, steps, rows=rows, steps=plan.steps)


def _ignore_warning(message: str) -> None:
    """Ignore warnings of the loader during the measurement; the run itself shows them."""


class _TimeLimit(Exception):
    """A step exceeded its time limit."""


class ProbeSteps:
    """Training steps of temporary trainers over the first images of the run.

    A step over its time limit ends before the next layer or after the next gradient.
    """

    def __init__(self, make: Make, clock: Callable[[], float] = time.perf_counter) -> None:
        self.make, self.clock = make, clock
        self.until = math.inf
        self._trainers: dict[tuple[str, str], PretrainTrainer] = {}
        self._streams: dict[tuple[StepConfig, int], Iterator[Batch]] = {}
        self._cut: dict[int, float] = {}  # rows -> seconds of data loading in the main process

    def __call__(self, way: StepConfig, rows: int, limit: float) -> StepTime:
        """Run one step; its seconds, up to the time limit."""
        self.until = self.clock() + limit
        set_threads(way.threads)
        trainer = self._trainer(way)
        began = ready = self.clock()
        try:
            batch = next(self._stream(way, trainer, rows))
            ready = self.clock()
            loss = trainer.train_step(batch)
            loss.item()
        except _TimeLimit:
            return StepTime(ready - began, self.clock() - ready, whole=False)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # does nothing where there is no GPU
            return StepTime(0.0, math.inf, whole=False)
        spent = StepTime(ready - began, self.clock() - ready)
        if not way.workers:
            self._cut[rows] = spent.data
            return spent
        # the first batches were prefetched: in the long run the workers' speed is the limit
        waiting = self._cut.get(rows, 0.0) / way.workers - spent.step
        return StepTime(max(spent.data, waiting), spent.step)

    def _look(self, *_: Any) -> None:
        if self.clock() > self.until:
            raise _TimeLimit

    def close(self) -> None:
        """Stop the workers and delete the trainers."""
        for stream in self._streams.values():
            stream.close()  # type: ignore[attr-defined]  # they are generators
        self._streams.clear()
        self._trainers.clear()
        gc.collect()

    def _trainer(self, way: StepConfig) -> PretrainTrainer:
        key = way.precision, way.layout
        if key not in self._trainers:
            trainer = self.make(way)
            trainer.loader.warn = _ignore_warning
            for module in trainer.state.model.modules():
                module.register_forward_pre_hook(self._look)
            for weight in trainer.state.model.parameters():
                weight.register_post_accumulate_grad_hook(self._look)  # type: ignore[no-untyped-call]
            self._trainers[key] = trainer
        return self._trainers[key]

    def _stream(self, way: StepConfig, trainer: PretrainTrainer, rows: int) -> Iterator[Batch]:
        if (way, rows) not in self._streams:
            trainer.loader.workers = way.workers
            batches = [trainer.loader.batch(0)[:rows]] * _BATCHES
            self._streams[way, rows] = trainer.loader.these(batches, 0)
        trainer.loader.workers = way.workers  # read when the first batch is requested
        return self._streams[way, rows]
