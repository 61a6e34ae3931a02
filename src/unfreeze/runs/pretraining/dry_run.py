"""The forecast of `pretrain --dry-run`: time, memory and learning rate of a plan."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.models.layer_costs import (
    ComputeDevice,
    matmul_flops_per_second,
    network_flops_per_second,
)
from unfreeze.reports.results_runs import format_setting
from unfreeze.runs.training_cost import COUNTED, FEW, QUICK, cost_lines, fastest_seconds, is_quick
from unfreeze.runtime.console import Console
from unfreeze.runtime.text_layout import TextTable
from unfreeze.runtime.time_limit import parse_duration
from unfreeze.swav.auto_recipe import PretrainRecipe
from unfreeze.swav.cost import (
    MicroBatchCost,
    learning_rates,
    micro_batch_cost,
    plan_warnings,
    pretrain_memory,
    published_recipe,
    sparkline,
)
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.throughput import StepTime
from unfreeze.training.trainer import PretrainTrainer

BUDGET = 4.0  # about the seconds for measuring steps in a dry run
NEAR = 4  # a step of 1 / NEAR of the batch is extrapolated to the whole batch
SHORT = 1.0  # about the seconds for measuring steps before a run
REPEATS = 3  # of the largest step measured
DIFFERENT = 32  # random images
FEW_HUNDRED = 1_000  # images, with fewer of which weights of other images are the better start


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run.

    `reference`: the published `recipe` for comparison and its `settings`. `learning_rate`: [step,
    rate] at ten steps. `loss`: of an `untrained` and a `collapsed` network, empty for a method
    without prototypes. `memory`: bytes on the
    device of one process. `time`: seconds per step and in all. Both have their `basis`, and None
    for unknown values. `warnings`: settings that do not suit the data.
    """

    reference: dict[str, Any]
    learning_rate: list[tuple[int, float]]
    loss: dict[str, float]
    memory: dict[str, Any]
    time: dict[str, Any]
    warnings: list[str]


Make = Callable[
    [ImageDataset, Any], PretrainTrainer
]  # images and the positions of one batch of them


def forecast(plan: PretrainRecipe, facts: DatasetStats, make: Make) -> Forecast:
    """The forecast of a plan; `make` builds the trainer over random images. Writes no file."""
    s = plan.settings
    share = (s.batch_size or 0) // facts.processes
    trainer = _trainer_on_noise(plan, facts, make)
    work, memory_use = _memory_of(trainer, plan, share, facts.processes)
    name, values = published_recipe(s)
    return Forecast(
        reference={"recipe": name, "settings": values},
        learning_rate=learning_rates(plan),
        loss={
            "untrained": round(plan.loss_at_start, 4),
            "collapsed": round(plan.loss_collapsed, 4),
        }
        if s.nmb_prototypes
        else {},
        memory=memory_use,
        time=_time_of(trainer, plan, share, work, plan.steps, BUDGET),
        warnings=list(plan_warnings(plan, facts)),
    )


def pretrain_cost(
    plan: PretrainRecipe,
    facts: DatasetStats,
    trainer: PretrainTrainer,
    make: Make,
    *,
    done: int = 0,
    measured: tuple[int, StepTime] | None = None,
    source: str = "",
) -> dict[str, dict[str, Any]]:
    """`time` and `memory` of a run before it starts, estimated in about a second at most.

    `trainer`: the run's, not changed; `done`: finished steps; `measured`: (images, seconds) of a
    step that was measured already; `source`: when, if not before this run.
    """
    share = (plan.settings.batch_size or 0) // facts.processes
    work, memory_use = _memory_of(trainer, plan, share, facts.processes)
    left, views = plan.steps - done, sum(plan.settings.nmb_crops or ())
    accumulate = plan.settings.accumulate
    if measured is not None and NEAR * measured[0] >= share:
        rows, spent = measured
        each = spent.total * share / rows
        spent_in_all = {
            "seconds": each * left,
            "seconds_step": each,
            "basis": f"{source or _PROBED}, {_WITHOUT}",
        }
    elif work and is_quick(
        3 * work.operations * accumulate * left, views * share * left, _device_type(trainer)
    ):
        spent_in_all = {"seconds": QUICK, "at_most": True, "basis": "estimated from shapes"}
    else:
        cuda = [trainer.compute.device] if _device_type(trainer) == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            temporary = _trainer_on_noise(plan, facts, make)
            spent_in_all = _time_of(temporary, plan, share, work, left, SHORT)
    return {"time": spent_in_all, "memory": memory_use}


_PROBED = "measured before step 0"
_WITHOUT = "without reading files, feature evaluations and checkpoints"


def epoch_seconds(
    plan: PretrainRecipe, facts: DatasetStats, make: Make, operations: float, enough: float
) -> float | None:
    """Seconds of an epoch, measured in about a second.

    `operations`: FLOPs of the forward pass over a part of a batch. If this machine's peak speed
    needs more than `enough` seconds, returns those without measuring.
    """
    s = plan.settings
    in_all = 3 * operations * s.accumulate * plan.steps_per_epoch
    if facts.device == "cpu":
        at_most = fastest_seconds(in_all)
        if at_most > enough:
            return at_most
    cuda = [torch.device(facts.device)] if facts.device == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        trainer = _trainer_on_noise(plan, facts, make)
        share = (s.batch_size or 0) // facts.processes
        work = MicroBatchCost(0, round(operations))
        seconds = _time_of(trainer, plan, share, work, plan.steps_per_epoch, SHORT)["seconds"]
    return None if seconds is None else float(seconds)


def _device_type(trainer: PretrainTrainer) -> str:
    return trainer.compute.device.type


def _trainer_on_noise(plan: PretrainRecipe, facts: DatasetStats, make: Make) -> PretrainTrainer:
    s = plan.settings
    side = min(facts.side, 2 * max(s.size_crops or (facts.side,)))
    return make(_images(side), np.arange(s.batch_size or 0) % DIFFERENT)


def _memory_of(
    trainer: PretrainTrainer, plan: PretrainRecipe, share: int, processes: int
) -> tuple[MicroBatchCost | None, dict[str, Any]]:
    """(FLOPs and activations of a part of the batch, bytes by purpose); None if unknown."""
    compute, rows = trainer.compute, share // plan.settings.accumulate
    try:
        work = micro_batch_cost(
            trainer.task, plan, rows=rows, device=compute.device, precision=compute.precision
        )
    # networks that cannot run on the meta device raise various errors
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        return None, {"total": None, "basis": f"unknown: {_first_line(error)}"}
    counted = pretrain_memory(trainer.state.model, plan, work, share=share, processes=processes)
    return work, {**asdict(counted), "total": counted.total, "basis": COUNTED}


def _images(side: int) -> ImageDataset:
    shape = (DIFFERENT, side, round(side * 4 / 3), 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    names = [str(number) for number in range(DIFFERENT)]
    return ImageDataset(build_index(ArraySource("noise", pixels, names, ["train"] * DIFFERENT)))


@dataclass(frozen=True)
class _Timing:
    """Seconds of one step: for the crops and for the network; `how` they were measured."""

    data: float
    step: float
    how: str


def _time_of(
    trainer: PretrainTrainer,
    plan: PretrainRecipe,
    share: int,
    work: MicroBatchCost | None,
    steps: int,
    budget: float,
) -> dict[str, Any]:
    """Seconds of a step and of `steps` steps, measured within `budget` seconds."""
    timing: _Timing | None
    try:
        timing, why = _measure(trainer, share, work, budget)
    except torch.OutOfMemoryError:
        timing, why = None, f"a step of {share} images does not fit into the device's memory"
    else:
        if timing is None and work:
            timing = _timing_by_speed(trainer, plan.settings, share, work)
    if timing is None:
        return {"seconds": None, "seconds_step": None, "basis": f"not measured: {why}"}
    workers = trainer.loader.workers
    data = timing.data / max(1, workers)
    step_seconds = max(timing.step, data) if workers else timing.step + data
    values = {"seconds": step_seconds * steps, "seconds_step": timing.step, "seconds_data": data}
    values = {name: float(f"{value:.4g}") for name, value in values.items()}  # as shown
    starts = {}
    if plan.settings.time_limit is not None:
        starts["starts"] = math.ceil(values["seconds"] / parse_duration(plan.settings.time_limit))
    basis = f"{timing.how}, on this machine at its present load, {_WITHOUT}"
    return {**values, **starts, "basis": basis}


def _timing_by_speed(
    trainer: PretrainTrainer, s: PretrainSettings, share: int, work: MicroBatchCost
) -> _Timing | None:
    """Timing of a step that is too slow to measure, by its FLOPs and the speed of a part of it."""
    accumulate, rows = trainer.plan.accumulate, min(FEW, share)
    began = time.perf_counter()
    next(trainer.loader.these([trainer.loader.positions[:rows]], 0))
    data = (time.perf_counter() - began) / rows * share
    speed = network_flops_per_second(
        trainer.task.backbone,
        (),
        max(s.size_crops or ()),
        rows=share // accumulate,
        machine=ComputeDevice(trainer.compute.device, trainer.compute.precision),
    )
    if speed is None:
        return None
    seconds = 3 * work.operations * accumulate / speed
    return _Timing(data, seconds, "estimated from shapes, at a speed measured for a second")


def _measure(
    trainer: PretrainTrainer, share: int, work: MicroBatchCost | None, budget: float = BUDGET
) -> tuple[_Timing | None, str]:
    """(timing of a step of `share` images, or None and why).

    Measures steps of more and more images within the budget. If that ends below `share`,
    extrapolates linearly from the last two, as a step also has constant costs. The largest is
    measured up to `REPEATS` times; its median counts.
    """
    began, accumulate = time.perf_counter(), trainer.plan.accumulate
    sizes = [n for n in range(2 * accumulate, share + 1, accumulate) if share % n == 0] or [share]
    if trainer.compute.device.type == "cpu":
        heavy = _seconds_at_most(work, sizes[0] / (share // accumulate)) if work else math.inf
        if heavy > budget:
            return None, f"a step of {sizes[0]} images may take more than {budget:g} s"
    _step(trainer, sizes[0])  # warm-up
    tried = [(sizes[0], *_step(trainer, sizes[0]))]
    for rows in sizes[1:]:
        previous, *spent = tried[-1]
        if time.perf_counter() - began + sum(spent) * rows / previous > budget:
            break
        tried.append((rows, *_step(trainer, rows)))
    (fewer, *low), (more, *once) = (tried[0], *tried)[-2:]
    repeated = [tuple(once)]
    # beside a busy program a single short step can take several times as long
    while len(repeated) < REPEATS and time.perf_counter() - began + sum(once) <= budget:
        repeated.append(_step(trainer, more))
    high = [statistics.median(values) for values in zip(*repeated, strict=True)]
    data, step = (_extrapolate(fewer, a, more, b, share) for a, b in zip(low, high, strict=True))
    return _Timing(data, step, _how(share, more)), ""


def _how(share: int, tried: int) -> str:
    if tried == share:
        return f"measured in a step of {share} random images"
    return f"estimated from steps of up to {tried} random images for a batch of {share}"


def _extrapolate(fewer: int, low: float, more: int, high: float, share: int) -> float:
    """Linear extrapolation from two sizes to `share`; proportional to the larger if not rising.

    Also if a single size was measured, `fewer` == `more`, more than once.
    """
    if more in (share, fewer) or high <= low:
        return high * share / more
    return high + (high - low) / (more - fewer) * (share - more)


def _seconds_at_most(work: MicroBatchCost, parts: float) -> float:
    """Upper estimate of a step: at an eighth of this machine's matrix multiplication speed."""
    return 3 * work.operations * parts / (matmul_flops_per_second() / 8)


def _step(trainer: PretrainTrainer, rows: int) -> tuple[float, float]:
    """Seconds for the crops and for the network of one step over `rows` random images."""
    began = time.perf_counter()
    ids = trainer.loader.positions[:rows]
    batch = next(trainer.loader.these([ids], 0))
    loaded = time.perf_counter()
    loss = trainer.train_step(batch)
    float(loss)  # waits for the device
    return loaded - began, time.perf_counter() - loaded


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


# --------------------------------------------------------------------------------------- console


def show_plan(
    plan: PretrainRecipe, reasons: dict[str, str], facts: DatasetStats, console: Console
) -> None:
    """Show the plan as a table: each derived value, the published one, and the reason."""
    settings, (recipe, published_values) = asdict(plan.settings), published_recipe(plan.settings)
    console.say(f"{facts.images:,} images, {facts.side} pixels on the shorter side (median).")
    rows = [
        (
            name.replace("_", "-"),
            format_setting(settings.get(name)),
            format_setting(published_values.get(name)),
            reason,
        )
        for name, reason in reasons.items()
    ]
    console.table(TextTable(("setting", "value", "published*", "why"), rows))
    console.say(f"* in the recipe {recipe}, for the 1,281,167 images of ImageNet")
    for doubt in plan_warnings(plan, facts):
        console.warn(doubt)
    if facts.images < FEW_HUNDRED and plan.settings.init == "none" and not plan.settings.teacher:
        console.say(
            f"{facts.images:,} images are few to learn from without labels: fine-tuning from "
            "--weights imagenet may be more accurate. `unfreeze compare` measures it."
        )
    expected = ""
    if plan.settings.nmb_prototypes:
        expected = (
            f"The loss starts near {plan.loss_at_start:.2f}; a loss that stays at "
            f"ln K = {plan.loss_collapsed:.3f} means collapse. "
        )
    console.say(
        f"{plan.settings.epochs} epochs of {plan.steps_per_epoch:,} steps, {plan.steps:,} in all. "
        f"{expected}The loss does not measure the quality of the features: evaluate them with "
        "labels."
    )


def show_forecast(plan: PretrainRecipe, result: Forecast, console: Console) -> None:
    """Show learning rate curve, memory and time."""
    curve = sparkline([rate for _, rate in learning_rates(plan, 40)])
    s = plan.settings
    console.say(f"Learning rate {curve}  peak {s.base_lr:g}, final {s.final_lr:g}")
    show_pretrain_cost(plan, {"time": result.time, "memory": result.memory}, console)


def show_pretrain_cost(
    plan: PretrainRecipe, costs: dict[str, dict[str, Any]], console: Console
) -> None:
    """Show time and memory."""
    time_use = costs["time"]
    for line in cost_lines(time_use, costs["memory"]):
        console.say(line)
    if time_use.get("starts"):
        limit = plan.settings.time_limit
        console.say(f"That is {time_use['starts']:,} runs with --time-limit {limit}.")
