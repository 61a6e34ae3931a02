"""`--time-budget`: selects architecture, image size and epochs that fit, by measured speed.

Only settings that are not given are derived; no image is decoded.
"""

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from unfreeze.config.field import flag
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import UsageError
from unfreeze.runs.finetuning.data import LabelledListing, number_of_runs, split_undecoded
from unfreeze.runs.finetuning.setup import new_job, set_up_model
from unfreeze.runs.pretraining.data import list_images
from unfreeze.runs.pretraining.dry_run import epoch_seconds
from unfreeze.runs.pretraining.setup import PreparedPretraining, prepared_for
from unfreeze.runs.pretraining.teacher import load_teacher
from unfreeze.runs.pretraining.teacher_features import pass_seconds
from unfreeze.runs.training_cost import finetune_cost
from unfreeze.runtime.console import Console, QuietConsole
from unfreeze.runtime.device import pick_device
from unfreeze.runtime.time_limit import HOUR, parse_duration, rough_duration
from unfreeze.swav.auto_recipe import choose_arch
from unfreeze.swav.presets import check_method, with_recipe
from unfreeze.transfer.cost import CostInput
from unfreeze.transfer.initialize import DEFAULT
from unfreeze.transfer.plan import EPOCHS

SPARE = 0.75  # share of the budget for training; the rest is for decoding, evaluation and saving


@dataclass(frozen=True)
class BudgetOption:
    """One configuration: `values` of settings, and between `least` and `most` epochs.

    `seconds(enough)`: measures the seconds of one epoch, or returns a lower bound if that is above
    `enough`; None if it cannot run here.
    """

    values: dict[str, Any]
    least: int
    most: int
    seconds: Callable[[float], float | None]


@dataclass(frozen=True)
class BudgetChoice:
    """The chosen option: its values, the number of epochs and their expected seconds."""

    values: dict[str, Any]
    epochs: int
    seconds: float


def choose_option(options: Iterable[BudgetOption], budget: float) -> BudgetChoice | None:
    """The first option whose minimum epochs fit into `budget` seconds, with all epochs that fit.

    If there is none, the option with the most epochs that fit; None if no epoch of any fits.
    """
    others = list[tuple[int, BudgetOption]]()  # by their epochs at most, as some are lower bounds
    for option in options:
        choice = _fit(option, budget, enough=budget / option.least)
        if choice is not None and choice.epochs >= option.least:
            return choice
        if choice is not None:
            others.append((choice.epochs, option))
    best: BudgetChoice | None = None
    for most, option in sorted(others, key=lambda other: other[0], reverse=True):
        if best is not None and most <= best.epochs:
            break
        choice = _fit(option, budget, enough=math.inf)
        if choice is not None and (best is None or choice.epochs > best.epochs):
            best = choice
    return best


def _fit(option: BudgetOption, budget: float, *, enough: float) -> BudgetChoice | None:
    """As many epochs of the option as fit; None for none."""
    each = option.seconds(enough)
    if each is None:
        return None
    epochs = min(option.most, int(SPARE * budget / max(each, 1e-9)))
    return BudgetChoice(option.values, epochs, epochs * each) if epochs else None


FLAG = "--time-budget"
LADDER = ("torchvision/resnet50", "torchvision/resnet18", "unfreeze/small")
SIDES = (224, 192, 160, 128, 96, 80, 64, 48, 32)
FEW = {"pretrain": 25, "finetune": 10}  # with fewer epochs a smaller network is preferred
Noised = Callable[[PreparedPretraining], Any]  # makes trainers over random images
S = TypeVar("S", PretrainSettings, FinetuneSettings)


def budget_pretrain(
    s: PretrainSettings, processes: int, noised: Noised
) -> tuple[PretrainSettings, dict[str, str]]:
    """(settings with the values of `--time-budget`, their reasons); unchanged without it."""
    if s.time_budget is None or _is_resumed(s):
        return s, {}
    budget = _after_teacher(s, parse_duration(s.time_budget, FLAG))
    return _with_choice(s, choose_option(pretrain_options(s, processes, noised), budget))


def budget_finetune(
    s: FinetuneSettings, data: LabelledListing, processes: int
) -> tuple[FinetuneSettings, dict[str, str]]:
    """(settings with the values of `--time-budget`, their reasons); unchanged without it."""
    if s.time_budget is None or _is_resumed(s):
        return s, {}
    budget = parse_duration(s.time_budget, FLAG)
    return _with_choice(s, choose_option(finetune_options(s, data, processes), budget))


def with_budget_choice(s: S, chosen: S) -> S:
    """The settings of this process with the values that rank 0 selected."""
    return replace(s, arch=chosen.arch, image_size=chosen.image_size, epochs=chosen.epochs)


def pretrain_hint(s: PretrainSettings, processes: int, noised: Noised) -> dict[str, Any] | None:
    """The values that fit into an hour; None if none do."""
    budget = _after_teacher(s, HOUR)
    return _hint(s, choose_option(pretrain_options(s, processes, noised), budget))


def finetune_hint(
    s: FinetuneSettings, data: LabelledListing, processes: int
) -> dict[str, Any] | None:
    """The values that fit into an hour; None if none do."""
    return _hint(s, choose_option(finetune_options(s, data, processes), HOUR))


def show_hint(hint: dict[str, Any] | None, console: Console) -> None:
    """Show what fits into an hour."""
    if hint is None:
        console.say(
            "Not even one epoch of the smallest network fits into one hour on this machine."
        )
        return
    size = hint.get("image_size")
    parts = [hint.get("arch", ""), f"images of {size} pixels" if size else ""]
    what = ", ".join(text for text in (*parts, f"{hint['epochs']} epochs") if text)
    console.say(f"Fits into one hour on this machine: {what}. Add {FLAG} 1h to use it.")


def _hint(s: S, choice: BudgetChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    values = {"epochs": choice.epochs, **choice.values}
    return {**values, "seconds": round(choice.seconds, 1)}


def _is_resumed(s: PretrainSettings | FinetuneSettings) -> bool:
    """Whether this is a resumed run with values from its first start."""
    config = Path(str(s.out)) / "config.toml"
    if not (s.resume and s.out and config.exists()):
        return False
    return bool(tomllib.loads(config.read_text(encoding="utf-8")).get("time_budget"))


def _with_choice(s: S, choice: BudgetChoice | None) -> tuple[S, dict[str, str]]:
    """(settings with the values that fit, the reason of each derived one)."""
    if choice is None:
        raise UsageError(
            f"Not even one epoch of the smallest network fits into {FLAG} {s.time_budget}.",
            f"Give more time, omit {_flags(s)}, or use fewer images (--limit N).",
        )
    values = {"epochs": choice.epochs, **choice.values}
    default = {entry.name: entry.default for entry in fields(s)}
    reasons = {
        name: (
            f"fits {FLAG} {s.time_budget}: {rough_duration(choice.seconds)} "
            "by the measured step time"
        )
        for name, value in values.items()
        if getattr(s, name) == default[name] and value != default[name]
    }
    return replace(s, **values), reasons


def _flags(s: Any) -> str:
    return ", ".join(flag(name) for name in ("arch", "image_size", "epochs"))


# ------------------------------------------------------------------------------- pretrain


def pretrain_options(s: PretrainSettings, processes: int, noised: Noised) -> Iterator[BudgetOption]:
    """Options from the default down to the smallest network at 32 pixels."""
    device = pick_device(s.device)
    s = replace(s, dry_run=True)
    dataset = list_images(s, QuietConsole())
    filled, named = with_recipe(s)
    prepared_defaults = prepared_for(filled, named, dataset, device, processes)
    defaults = prepared_defaults.plan.settings
    top, free = defaults.image_size or 0, filled.arch is None and s.init == "none"
    nets = (
        _smaller(choose_arch(filled, dataset.side, len(dataset.train), device.type)[0])
        if free
        else (defaults.arch or "",)
    )
    sized = filled.image_size is not None or filled.size_crops is not None
    most = prepared_defaults.plan.settings.epochs or 1
    least = most if s.epochs is not None else min(most, FEW["pretrain"])
    for number, arch in enumerate(nets):
        lowest = min(top, 32) if number == len(nets) - 1 else top / 2
        for side in [top] if sized else [top, *(x for x in SIDES if lowest <= x < top)]:
            values: dict[str, Any] = {"arch": arch} if free else {}
            values |= {} if sized else {"image_size": side}

            def seconds(enough: float, values: dict[str, Any] = values) -> float | None:
                try:
                    option_settings = replace(filled, **values)
                    prepared = prepared_for(option_settings, named, dataset, device, processes)
                except UsageError:  # size not supported
                    return None
                flops = prepared.operations(prepared.plan, processes)
                if flops is None:
                    return None
                return epoch_seconds(prepared.plan, prepared.facts, noised(prepared), flops, enough)

            yield BudgetOption(values, least, most, seconds)


def _after_teacher(s: PretrainSettings, budget: float) -> float:
    """The seconds of a budget that are left when the teacher has seen every image."""
    if s.teacher is None:
        return budget
    check_method(s)
    images = len(list_images(replace(s, dry_run=True), QuietConsole()).train)
    seconds = pass_seconds(load_teacher(replace(s, dry_run=True)), images, pick_device(s.device))
    return max(0.0, budget - (seconds or 0.0))


def _smaller(arch: str) -> tuple[str, ...]:
    return LADDER[LADDER.index(arch) :] if arch in LADDER else (arch,)


# ------------------------------------------------------------------------------- finetune


def finetune_options(
    s: FinetuneSettings, data: LabelledListing, processes: int
) -> Iterator[BudgetOption]:
    """Options from the default down; other architectures only without weights and `--arch`."""
    s, device = replace(s, dry_run=True, time_budget=None), pick_device(s.device)
    free = s.weights == "none" and s.arch is None
    sides = [s.image_size] if s.image_size else None
    for arch in _smaller(DEFAULT) if free else (s.arch,):
        arch_settings = replace(s, arch=arch)
        largest = sides or [set_up_model(arch_settings, data).preprocess.image_size]
        smaller = [] if sides else [side for side in SIDES if 64 <= side < largest[0]]
        for side in (*largest, *smaller):
            values: dict[str, Any] = {"arch": arch} if free else {}
            values |= {} if sides else {"image_size": side}
            fresh = replace(arch_settings, **values)
            yield from _finetune_option(fresh, values, data, device, processes)


def _finetune_option(
    s: FinetuneSettings,
    values: dict[str, Any],
    data: LabelledListing,
    device: torch.device,
    processes: int,
) -> Iterator[BudgetOption]:
    portions = split_undecoded(s, data)
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    try:
        job = new_job(s, data, set_up_model(s, data), device, **counts, processes=processes)
    except UsageError:  # size not supported
        return
    planned = job.plan.settings
    most = s.epochs or EPOCHS
    # epochs over cached features cost little: only a smaller image size shortens such a run
    cached = planned.cache not in ("off", "auto")
    epochs = 1 if cached else most
    least = min(most, FEW["finetune"]) if s.epochs is None else most
    if cached:
        values, least, most = {**values, "epochs": most}, 1, 1
    case = CostInput(
        job.network, job.schedule, job.head, **counts, runs=number_of_runs(s, portions, job.task)
    )

    def seconds(enough: float) -> float | None:
        most_seconds = enough * epochs
        total = finetune_cost(job, case, device, processes, enough=most_seconds)["time"]["seconds"]
        return None if total is None else total / epochs

    yield BudgetOption(values, least, most, seconds)
