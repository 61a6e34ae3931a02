"""Remedies for a collapsed run, in the order to try them.

The order follows the reference's advice (its README, "Common Issues"), cheapest first. Each remedy
is a flag with a value derived from the run's settings.
"""

from dataclasses import dataclass
from typing import Any

from unfreeze.config.field import flag
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.swav.presets import SHARPEST, epsilon_of

FEWEST = 16  # prototypes


@dataclass(frozen=True)
class Remedy:
    """Settings to change, and why."""

    values: dict[str, Any]
    why: str

    @property
    def flags(self) -> str:
        """The command-line flags."""
        return " ".join(f"{flag(name)} {_typed(value)}" for name, value in self.values.items())


def remedies(s: PretrainSettings, *, steps_per_epoch: int, images: int) -> list[Remedy]:
    """Remedies for a run with these complete settings, best first."""
    options = [_sharper(s), _longer(s, steps_per_epoch), _slower(s), _softer(s), _fewer_crops(s)]
    options += [_fewer_prototypes(s, images), _cooler(s), _queue(s)]
    return [remedy for remedy in options if remedy is not None]


def _sharper(s: PretrainSettings) -> Remedy | None:
    if epsilon_of(s) <= SHARPEST or s.method != "swav":
        return None
    return Remedy({"epsilon": SHARPEST}, "sharper codes")


def _longer(s: PretrainSettings, epoch: int) -> Remedy | None:
    if s.method != "swav":
        return None
    frozen, most = s.freeze_prototypes_niters or 0, epoch * (s.epochs or 0) // 4
    longer = min(max(2 * frozen, epoch), most)
    if longer <= frozen:
        return None
    return Remedy({"freeze_prototypes_niters": longer}, "prototypes frozen for longer")


def _slower(s: PretrainSettings) -> Remedy | None:
    if not s.base_lr:
        return Remedy({"base_lr": _usual_lr(s)}, "a learning rate above 0")
    lr = min(s.base_lr / 3, _usual_lr(s))
    return Remedy(
        {"base_lr": float(f"{lr:.2g}"), "final_lr": float(f"{lr / 1000:.2g}")},
        "lower learning rate",
    )


def _usual_lr(s: PretrainSettings) -> float:
    share = (s.batch_size or 256) / 256
    usual = {"adamw": 2e-3 * share**0.5, "larc": 0.6 * share, "sgd": 0.05 * share}
    return float(f"{usual[s.optimizer or 'larc']:.2g}")


def _softer(s: PretrainSettings) -> Remedy | None:
    scales = s.min_scale_crops or ()
    if s.augment == "photo":
        return Remedy({"augment": "small"}, "half the colour jitter, no blur")
    if scales and scales[0] < 0.4:
        return (
            Remedy({"min_scale_crops": (0.5, *scales[1:])}, "larger crops")
            if ((s.max_scale_crops or (1.0,))[0] >= 0.5)
            else None
        )
    return None


def _fewer_crops(s: PretrainSettings) -> Remedy | None:
    counts = s.nmb_crops or ()
    if len(counts) < 2 or counts[1] <= 2:
        return None
    return Remedy({"nmb_crops": (counts[0], counts[1] // 2, *counts[2:])}, "fewer small crops")


def _fewer_prototypes(s: PretrainSettings, images: int) -> Remedy | None:
    K = s.nmb_prototypes or 0
    fewer = max(FEWEST, min(K // 2, images // 8, 2 * (s.batch_size or 0)))
    if fewer >= K:
        return None
    return Remedy({"nmb_prototypes": fewer}, "fewer prototypes")


def _cooler(s: PretrainSettings) -> Remedy | None:
    if s.temperature <= 0.1:
        return None
    return Remedy({"temperature": 0.1}, "the published temperature")


def _queue(s: PretrainSettings) -> Remedy | None:
    length, batch = s.queue_length or 0, s.batch_size or 1
    if not length:
        return None
    shorter = length // 2 // batch * batch
    return Remedy({"queue_length": shorter}, "a shorter queue" if shorter else "no queue")


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
