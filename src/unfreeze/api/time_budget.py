"""`--time-budget`: selects architecture, image size and epochs that fit, by measured speed.

Only settings that are not given are derived; no image is decoded.
"""

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from unfreeze.api.cost import cost
from unfreeze.api.forecast import epoch_seconds
from unfreeze.api.gathering import gathering
from unfreeze.api.job import begun, opened
from unfreeze.api.labelling import Labelled, unchecked
from unfreeze.api.preparing import Prepared, prepared_for
from unfreeze.api.repeating import runs_of
from unfreeze.errors import UsageError
from unfreeze.runtime.budget import Fitting, Option, fitting
from unfreeze.runtime.console import Console, Quiet
from unfreeze.runtime.deadline import seconds_in
from unfreeze.runtime.devices import pick_device
from unfreeze.runtime.duration import HOUR, spoken
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.knob import flag
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.recipe import choose_arch
from unfreeze.swav.recipes import with_recipe
from unfreeze.transfer.cost import Case
from unfreeze.transfer.start import DEFAULT

FLAG = "--time-budget"
LADDER = ("torchvision/resnet50", "torchvision/resnet18", "unfreeze/small")
SIDES = (224, 192, 160, 128, 96, 80, 64, 48, 32)
FEW = {"pretrain": 25, "finetune": 10}  # with fewer epochs a smaller network is preferred
Noised = Callable[[Prepared], Any]  # makes trainers over random images
S = TypeVar("S", PretrainSettings, FinetuneSettings)


def for_pretrain(
    s: PretrainSettings, processes: int, noised: Noised
) -> tuple[PretrainSettings, dict[str, str]]:
    """(settings with the values of `--time-budget`, their reasons); unchanged without it."""
    if s.time_budget is None or _is_resumed(s):
        return s, {}
    budget = seconds_in(s.time_budget, FLAG)
    return _with_choice(s, fitting(pretrain_options(s, processes, noised, budget), budget))


def for_finetune(
    s: FinetuneSettings, data: Labelled, processes: int
) -> tuple[FinetuneSettings, dict[str, str]]:
    """(settings with the values of `--time-budget`, their reasons); unchanged without it."""
    if s.time_budget is None or _is_resumed(s):
        return s, {}
    budget = seconds_in(s.time_budget, FLAG)
    return _with_choice(s, fitting(finetune_options(s, data, processes, budget), budget))


def with_choice(s: S, chosen: S) -> S:
    """The settings of this process with the values that rank 0 selected."""
    return replace(s, arch=chosen.arch, image_size=chosen.image_size, epochs=chosen.epochs)


def pretrain_hint(s: PretrainSettings, processes: int, noised: Noised) -> dict[str, Any] | None:
    """The values that fit into an hour; None if none do."""
    return _hint(s, fitting(pretrain_options(s, processes, noised, HOUR), HOUR))


def finetune_hint(s: FinetuneSettings, data: Labelled, processes: int) -> dict[str, Any] | None:
    """The values that fit into an hour; None if none do."""
    return _hint(s, fitting(finetune_options(s, data, processes, HOUR), HOUR))


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


def _hint(s: S, choice: Fitting | None) -> dict[str, Any] | None:
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


def _with_choice(s: S, choice: Fitting | None) -> tuple[S, dict[str, str]]:
    """(settings with the values that fit, the reason of each derived one)."""
    if choice is None:
        raise UsageError(
            f"Not even one epoch of the smallest network fits into {FLAG} {s.time_budget}.",
            f"Give more time, omit {_flags(s)}, or use fewer images (--limit N).",
        )
    values = {"epochs": choice.epochs, **choice.values}
    default = {entry.name: entry.default for entry in fields(s)}
    reasons = {
        name: f"fits {FLAG} {s.time_budget}: {spoken(choice.seconds)} by the measured step time"
        for name, value in values.items()
        if getattr(s, name) == default[name] and value != default[name]
    }
    return replace(s, **values), reasons


def _flags(s: Any) -> str:
    return ", ".join(flag(name) for name in ("arch", "image_size", "epochs"))


# ------------------------------------------------------------------------------- pretrain


def pretrain_options(
    s: PretrainSettings, processes: int, noised: Noised, budget: float
) -> Iterator[Option]:
    """Options from the default down to the smallest network at 32 pixels.

    Options that need more than `budget` seconds even at this machine's peak speed are not measured.
    """
    device = pick_device(s.device)
    s = replace(s, dry_run=True)
    dataset = gathering(s, Quiet())
    filled, named = with_recipe(s)
    prepared_defaults = prepared_for(filled, named, dataset, device, processes)
    defaults = prepared_defaults.plan.settings
    top, free = defaults.image_size or 0, filled.arch is None and s.init == "none"
    nets = (
        _smaller(choose_arch(filled, dataset.side, device.type)[0])
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

            def seconds(values: dict[str, Any] = values) -> float | None:
                try:
                    option_settings = replace(filled, **values)
                    prepared = prepared_for(option_settings, named, dataset, device, processes)
                except UsageError:  # size not supported
                    return None
                flops = prepared.operations(prepared.plan, processes)
                if flops is None:
                    return None
                return epoch_seconds(
                    prepared.plan, prepared.facts, noised(prepared), flops, budget / least
                )

            yield Option(values, least, most, seconds)


def _smaller(arch: str) -> tuple[str, ...]:
    return LADDER[LADDER.index(arch) :] if arch in LADDER else (arch,)


# ------------------------------------------------------------------------------- finetune


def finetune_options(
    s: FinetuneSettings, data: Labelled, processes: int, budget: float
) -> Iterator[Option]:
    """Options from the default down; other architectures only without weights and `--arch`."""
    s, device = replace(s, dry_run=True, time_budget=None), pick_device(s.device)
    free = s.weights == "none" and s.arch is None
    sides = [s.image_size] if s.image_size else None
    for arch in _smaller(DEFAULT) if free else (s.arch,):
        arch_settings = replace(s, arch=arch)
        largest = sides or [opened(arch_settings, data).preprocess.image_size]
        smaller = [] if sides else [side for side in SIDES if 64 <= side < largest[0]]
        for side in (*largest, *smaller):
            values: dict[str, Any] = {"arch": arch} if free else {}
            values |= {} if sides else {"image_size": side}
            fresh = replace(arch_settings, **values)
            yield from _finetune_option(fresh, values, data, device, processes, budget)


def _finetune_option(
    s: FinetuneSettings,
    values: dict[str, Any],
    data: Labelled,
    device: torch.device,
    processes: int,
    budget: float,
) -> Iterator[Option]:
    portions = unchecked(s, data)
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    try:
        job = begun(s, data, opened(s, data), device, **counts, processes=processes)
    except UsageError:  # size not supported
        return
    default = next(entry.default for entry in fields(s) if entry.name == "epochs")
    planned = job.plan.settings
    # epochs over cached features cost little: only a smaller image size shortens such a run
    cached = planned.cache not in ("off", "auto")
    least, most = min(s.epochs, FEW["finetune"]), s.epochs
    if cached:
        values, least, most = {**values, "epochs": s.epochs}, 1, 1
    elif s.epochs != default:
        least = s.epochs
    case = Case(job.network, job.schedule, job.head, **counts, runs=runs_of(s, portions))
    epochs = 1 if cached else s.epochs

    def seconds() -> float | None:
        enough = budget * epochs / least
        total = cost(job, case, device, processes, enough=enough)["time"]["seconds"]
        return None if total is None else total / epochs

    yield Option(values, least, most, seconds)
