"""Published recipes: the settings of SwAV's ImageNet runs, applied where the user gave none.

The values are those of the reference's scripts for ResNet-50 and for networks two and four times
as wide (paper, appendix A). Counts are for 1.28 million images: 313 and 5,005 steps are one epoch
at batch sizes 4,096 and 256.
One constant differs: images are divided by ImageNet's standard deviations, the first of which is
0.229; the reference has 0.228.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unfreeze.config.field import flag
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import UsageError
from unfreeze.swav.dataset_stats import SMALL
from unfreeze.tasks.registry import pretrain_task

_SHARED: dict[str, Any] = {
    "arch": "torchvision/resnet50",
    "stem": "imagenet",
    "augment": "photo",
    "optimizer": "larc",
    "image_size": 224,
    "size_crops": (224, 96),
    "nmb_crops": (2, 6),
    "min_scale_crops": (0.14, 0.05),
    "max_scale_crops": (1.0, 0.14),
    "crops_for_assign": (0, 1),
    "temperature": 0.1,
    "epsilon": 0.05,
    "sinkhorn_iterations": 3,
    "feat_dim": 128,
    "hidden_mlp": 2048,
    "nmb_prototypes": 3000,
    "epoch_queue_starts": 15,
    "wd": 1e-6,
}
_LARGE = _SHARED | {
    "batch_size": 4096,
    "base_lr": 4.8,
    "final_lr": 0.0048,
    "warmup_epochs": 10,
    "start_warmup": 0.3,
    "freeze_prototypes_niters": 313,
    "queue_length": 0,
}
_SMALL = _SHARED | {
    "batch_size": 256,
    "base_lr": 0.6,
    "final_lr": 0.0006,
    "warmup_epochs": 0,
    "start_warmup": 0.0,
    "freeze_prototypes_niters": 5005,
    "queue_length": 3840,
}
_TWO_VIEWS = {
    "size_crops": (224,),
    "nmb_crops": (2,),
    "min_scale_crops": (0.08,),
    "max_scale_crops": (1.0,),
}
_WIDE = _LARGE | {"epochs": 400, "nmb_crops": (2, 4), "hidden_mlp": 8192}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "swav-100ep": _LARGE | {"epochs": 100},
    "swav-200ep": _LARGE | {"epochs": 200},
    "swav-400ep": _LARGE | {"epochs": 400},
    "swav-800ep": _LARGE | {"epochs": 800},
    "swav-200ep-bs256": _SMALL | {"epochs": 200},
    "swav-400ep-bs256": _SMALL | {"epochs": 400},
    "swav-400ep-2x224": _LARGE | _TWO_VIEWS | {"epochs": 400},
    "swav-w2-400ep": _WIDE | {"arch": "unfreeze/resnet50w2"},
    "swav-w4-400ep": _WIDE
    | {
        "arch": "unfreeze/resnet50w4",
        "batch_size": 2560,
        "min_scale_crops": (0.08, 0.08),
        "queue_length": 2560,
        "epoch_queue_starts": 0,
    },
}


def with_recipe(settings: PretrainSettings) -> tuple[PretrainSettings, dict[str, str]]:
    """(settings with their recipe's values where none was given, {setting: recipe name}).

    The recipe `auto` changes nothing. Idempotent.
    """
    name = settings.recipe
    if name == "auto":
        return settings, {}
    values = dict(PUBLISHED[name])
    if settings.size_crops:
        del values["image_size"]  # derived from the crops
    elif settings.image_size:
        sizes = (settings.image_size, small_side(settings.image_size))
        values["size_crops"] = sizes[: len(values["size_crops"])]
    applied = {key: value for key, value in values.items() if _open(settings, key)}
    return replace(settings, **applied), dict.fromkeys(applied, name)


def small_side(large: int) -> int:
    """Size of the small crops for large crops of `large` pixels: 96 for 224, a multiple of 8."""
    return max(8, 8 * round(large * 96 / 224 / 8))


def _open(settings: PretrainSettings, name: str) -> bool:
    # other fields with a default have the published value; the stem's default is "auto"
    return getattr(settings, name) is None or (name == "stem" and settings.stem == "auto")


def usual_side(side: int, device: str) -> int:
    """Default size of the large crops for images of `side` pixels."""
    limited = side if device != "cpu" else min(side, 128)
    return min(224, max(16, 8 * round(limited / 8)))


EPSILON = 0.05  # arXiv 2006.09882, appendix A.1
SHARPEST = 0.03  # the reference's advice against collapse, and what works on digits
# settings that only some methods use
SINKHORN = ("epsilon", "sinkhorn_iterations", "queue_length", "epoch_queue_starts")
KMEANS = ("clusterings", "kmeans_iterations")
PROTOTYPES = ("crops_for_assign", "temperature", "nmb_prototypes", "freeze_prototypes_niters")


def choose_method(s: PretrainSettings, pixels: int) -> tuple[str, str]:
    """(method, reason) of `--method auto` for large crops of `pixels`; ("", "") if one is given."""
    if s.method != "auto":
        return "", ""
    if s.recipe != "auto":
        return "swav", f"the recipe {s.recipe} is SwAV's"
    if given := [name for name in given_of_method(s) if name != "temperature"]:
        return "swav", f"{flag(given[0])} is a setting of SwAV: its prototypes and codes"
    if pixels <= SMALL:
        return "simclr", f"images of {pixels} pixels: learns more per minute (docs/RESULTS.md)"
    return "swav", f"images of {pixels} pixels have room for small crops"


def method_hint(given: PretrainSettings, pixels: int) -> str:
    """A sentence if another method learns more per minute than the default, SwAV; else ""."""
    method, _ = choose_method(replace(given, method="auto"), pixels)
    if given.method != "swav" or method == "swav" or given.init != "none":
        return ""
    return f"--method {method} learns more per minute on images of this size (docs/RESULTS.md)."


def given_of_method(s: PretrainSettings) -> list[str]:
    """The given settings that only some methods use."""
    defaults = {field.name: field.default for field in dataclasses.fields(s)}
    names = (*SINKHORN, *KMEANS, *PROTOTYPES)
    return [name for name in names if getattr(s, name) not in (defaults[name], 0)]


def check_method(s: PretrainSettings) -> None:
    """Raise UsageError for a given setting that the method does not use."""
    if s.method == "auto":
        return
    uses = pretrain_task(s.method).uses
    given = [name for name in given_of_method(s) if name not in uses]
    if given:
        raise UsageError(f"{flag(given[0])} has no effect with --method {s.method}.", "Omit it.")
    needs_teacher = pretrain_task(s.method).needs_teacher
    if needs_teacher and s.teacher is None:
        raise UsageError(
            f"--method {s.method} needs a teacher.",
            "Add --teacher timm/NAME, or the FILE or RUN of a trained network.",
        )
    for name in ("teacher", "teacher_arch"):
        if not needs_teacher and getattr(s, name) is not None:
            raise UsageError(
                f"{flag(name)} has no effect with --method {s.method}.",
                "Omit it, or add --method distill.",
            )
    if s.method != "swav" and s.recipe != "auto":
        raise UsageError(f"--recipe {s.recipe} is for --method swav.", "Omit one of the two.")


def epsilon_of(s: PretrainSettings) -> float:
    """Sinkhorn's epsilon; the published value if it is not set."""
    return EPSILON if s.epsilon is None else s.epsilon


def prototypes_of(s: PretrainSettings) -> int:
    """Number of prototypes over all clusterings; SwAV has one set."""
    sets = s.clusterings if s.method == "deepcluster-v2" else 1
    return (s.nmb_prototypes or 0) * sets
