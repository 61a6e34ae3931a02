"""The initial weights that `compare` compares: same architecture and input, other weights."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from unfreeze.api.finetune import FinetunePlan, run_finetune
from unfreeze.api.labelling import read_labels
from unfreeze.backbones.recognise import network_of
from unfreeze.checkpoints.modelfile import card_of, model_folder
from unfreeze.data.intensity import parsed
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console, Quiet
from unfreeze.settings.compare import CompareSettings
from unfreeze.settings.finetune import FinetuneSettings, TuningSettings
from unfreeze.transfer.start import start as started


@dataclass(frozen=True)
class Start:
    """One value of `--weights`, the settings of its runs, and the plan of the first run."""

    weights: str
    settings: FinetuneSettings
    plan: FinetunePlan

    @property
    def name(self) -> str:
        """The name to display; of a path its last part."""
        return Path(self.weights).name if Path(self.weights).exists() else self.weights

    @property
    def pretrained(self) -> bool:
        """Whether the weights are not random."""
        return self.weights != "none"


def starts(s: CompareSettings) -> list[Start]:
    """All starts, in the order of `--weights`; trains and downloads nothing.

    Values of `--arch`, `--stem`, `--image-size`, `--mean`, `--std`, `--range` and `--channels`
    that are not given are for `none` those of the first pretrained start (runs before others), so
    that only the weights differ.
    """
    if len(s.weights) < 2 or len(set(s.weights)) < len(s.weights):
        raise UsageError(
            "compare needs two or more different --weights.", "For example: --weights none RUN."
        )
    arch = s.arch or _common_arch(s.weights)
    by_weights = {w: _start(s, w, {"arch": arch}) for w in s.weights if w != "none"}
    if "none" in s.weights:
        unfreeze_runs = [w for w in by_weights if network_of(w, arch) is not None]
        model = next(iter(unfreeze_runs or by_weights))
        reference = by_weights[model].plan.settings
        inherited = {
            name: reference[name] for name in ("arch", "stem", "image_size", "mean", "std")
        }
        requested = {name: getattr(s, name) for name in inherited}
        filled = {n: v for n, v in inherited.items() if requested[n] in (None, "auto")}
        filled |= {n: v for n, v in _decoding_of(model).items() if getattr(s, n) is None}
        by_weights["none"] = _start(s, "none", filled)
    return [by_weights[weights] for weights in s.weights]


def _decoding_of(weights: str) -> dict[str, Any]:
    """The intensity range and channels of a run; {} if `weights` is not a run."""
    if not Path(weights).exists() or model_folder(weights) is None:
        return {}
    preprocess = Preprocess.from_dict(card_of(weights).preprocess)
    rule, channels = parsed(preprocess.intensity)
    return {"range": rule, "channels": channels}


def check_weights(start: Start, s: CompareSettings, console: Console) -> None:
    """Load the weights once before training; WeightsError if they are missing or do not fit."""
    if not start.pretrained:
        return
    settings = start.settings
    loaded = started(
        str(start.plan.settings["arch"]),
        start.weights,
        settings.stem,
        classes=len(start.plan.classes),
        side=read_labels(settings, Quiet()).side,
        allow_partial=s.allow_partial,
    ).loaded
    if loaded is not None:
        console.say(f"{start.name}: {loaded.account}")
        if loaded.licence:
            console.say(loaded.licence)


def _start(s: CompareSettings, weights: str, extra: dict[str, Any]) -> Start:
    """The start of `weights`, with its settings and the plan of a dry run."""
    names = [entry.name for entry in fields(TuningSettings)]
    values = {name: getattr(s, name) for name in names} | {"weights": weights}
    values |= {name: _to_tuple(value) for name, value in extra.items() if value is not None}
    values |= {"resume": None, "overwrite": False, "dry_run": False, "out": None}
    config = FinetuneSettings(**values)
    plan = run_finetune(replace(config, dry_run=True), Quiet())
    return Start(weights, config, cast(FinetunePlan, plan))


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _common_arch(weights: tuple[str, ...]) -> str | None:
    """The architecture of the checkpoints among the weights; None if none of them names one."""
    arch_of = {
        w: known.arch for w in weights if w != "none" and (known := network_of(w)) is not None
    }
    if len(set(arch_of.values())) > 1:
        list_of = ", ".join(f"{name} is a {arch}" for name, arch in arch_of.items())
        raise UsageError(
            f"The weights are of different architectures: {list_of}.",
            "Compare weights of one architecture.",
        )
    return next(iter(arch_of.values()), None)
