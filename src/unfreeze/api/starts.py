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
    arch = s.arch or _common_network(s.weights)
    ready = {w: _start(s, w, {"arch": arch}) for w in s.weights if w != "none"}
    if "none" in s.weights:
        own = [w for w in ready if network_of(w, arch) is not None]
        model = next(iter(own or ready))
        like = ready[model].plan.settings
        given = {name: like[name] for name in ("arch", "stem", "image_size", "mean", "std")}
        asked = {name: getattr(s, name) for name in given}
        open_ones = {n: v for n, v in given.items() if asked[n] in (None, "auto")}
        open_ones |= {n: v for n, v in _read_by(model).items() if getattr(s, n) is None}
        ready["none"] = _start(s, "none", open_ones)
    return [ready[weights] for weights in s.weights]


def _read_by(weights: str) -> dict[str, Any]:
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
    asked = start.settings
    loaded = started(
        str(start.plan.settings["arch"]),
        start.weights,
        asked.stem,
        classes=len(start.plan.classes),
        side=read_labels(asked, Quiet()).side,
        allow_partial=s.allow_partial,
    ).loaded
    if loaded is not None:
        console.say(f"{start.name}: {loaded.account}")
        if loaded.licence:
            console.say(loaded.licence)


def _start(s: CompareSettings, weights: str, more: dict[str, Any]) -> Start:
    """The start of `weights`, with its settings and the plan of a dry run."""
    names = [entry.name for entry in fields(TuningSettings)]
    given = {name: getattr(s, name) for name in names} | {"weights": weights}
    given |= {name: _as_given(value) for name, value in more.items() if value is not None}
    given |= {"resume": None, "overwrite": False, "dry_run": False, "out": None}
    made = FinetuneSettings(**given)
    plan = run_finetune(replace(made, dry_run=True), Quiet())
    return Start(weights, made, cast(FinetunePlan, plan))


def _as_given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _common_network(weights: tuple[str, ...]) -> str | None:
    """The architecture of the checkpoints among the weights; None if none of them names one."""
    own = {w: found.arch for w in weights if w != "none" and (found := network_of(w)) is not None}
    if len(set(own.values())) > 1:
        list_of = ", ".join(f"{name} is a {arch}" for name, arch in own.items())
        raise UsageError(
            f"The weights are of different architectures: {list_of}.",
            "Compare weights of one architecture.",
        )
    return next(iter(own.values()), None)
