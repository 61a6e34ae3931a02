"""Settings that depend on the task: defaults, and which settings a task does not have."""

from typing import Any

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.field import flag
from unfreeze.config.finetune import TEXT_CLASSIFICATION, FinetuneOptions, FinetuneSettings
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.data.texts.source import TextColumns, holds_texts, open_texts
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console
from unfreeze.tasks.supervised import SupervisedTask

# settings of images, and the values with which they do nothing
OF_IMAGES: dict[str, tuple[Any, ...]] = {
    "image_size": (None,),
    "stem": ("auto", "imagenet"),
    "fit": (None,),
    "mean": (None,),
    "std": (None,),
    "range": (None, "auto"),
    "channels": (None,),
    "augment": ("photo", "none"),
    "cache_views": (None, 1),
    "mixup": (0.0,),
    "cutmix": (0.0,),
    "labels": (None,),
    "time_budget": (None,),
    "scan": ("full",),
    "store": ("auto",),
}
OF_TEXTS = ("text_column", "text_pair_column", "max_length")


def open_training_source(
    s: FinetuneOptions, task: str = "auto", *, fetch: bool = True, console: Console | None = None
) -> Source:
    """The texts or images of the training data; `task`: of --task."""
    if are_texts(s, task):
        check_text_settings(s)
        return open_texts(s.data, text_columns(s))
    return open_source(s.data, data_root=s.data_root, fetch=fetch, console=console)


def are_texts(s: FinetuneOptions, task: str) -> bool:
    """Whether the samples are texts: by --task, --text-column, or what DATA holds."""
    if task != "auto":
        if task != TEXT_CLASSIFICATION:
            for name in OF_TEXTS:
                if getattr(s, name) is not None:
                    raise UsageError(f"{flag(name)} is for texts.", f"Omit {flag(name)}.")
        return task == TEXT_CLASSIFICATION
    return any(getattr(s, name) is not None for name in OF_TEXTS) or holds_texts(s.data)


# settings that need classes, and the values with which they do nothing
NEED_CLASSES: dict[str, tuple[Any, ...]] = {
    "label_smoothing": (0.0,),
    "class_weights": ("none",),
    "sampling": ("natural",),
    "mixup": (0.0,),
    "cutmix": (0.0,),
    "labels_per_class": (None,),
    "head_solver": ("auto", "sgd"),
    "select": (None, "metric", "loss", "last"),
}
# settings that networks with maps as outputs do not have, and the values that they have
NOT_DENSE: dict[str, tuple[Any, ...]] = {
    "augment": ("photo", "mono", "none"),
    "cache": ("auto", "off"),
    "find_lr": (False,),
    "head": ("replace",),
    "stem": ("auto", "imagenet"),
    "fit": ("squash", "tile", None),
}


def check_task_settings(s: FinetuneSettings, task: SupervisedTask) -> None:
    """UsageError for a setting that the task does not support."""
    for name, without in NEED_CLASSES.items():
        value = getattr(s, name)
        if value in without or name in task.supports or (name == "select" and value == task.metric):
            continue
        raise UsageError(
            f"The task {task.name} has no {flag(name)} {value}.",
            f"Omit {flag(name)}.",
        )
    if not task.dense:
        _refuse_tiles(s)
    else:
        for name, allowed in NOT_DENSE.items():
            if getattr(s, name) not in allowed:
                raise UsageError(
                    f"The task {task.name} has no {flag(name)} {getattr(s, name)}.",
                    f"Use {flag(name)} {allowed[0]}.",
                )


def check_classification_settings(s: FinetuneOptions) -> None:
    """UsageError for settings of masks where no masks were found."""
    if s.ignore_index is not None or s.loss is not None:
        raise UsageError(
            "--ignore-index and --loss are for segmentation, and no masks were found.",
            "Give --masks DIR, or --task segmentation.",
        )
    _refuse_tiles(s)


def _refuse_tiles(s: FinetuneOptions) -> None:
    if s.fit == "tile":
        raise UsageError("--fit tile is for segmentation.", "Use --fit crop, squash or pad.")


def check_text_settings(s: FinetuneOptions) -> None:
    """UsageError for a setting that only images have."""
    for name, nothing in OF_IMAGES.items():
        if getattr(s, name, nothing[0]) not in nothing:
            step = "Use --label-column." if name == "labels" else f"Omit {flag(name)}."
            raise UsageError(f"Texts have no {flag(name)}.", step)


def text_columns(s: FinetuneOptions) -> TextColumns:
    """The columns that the settings name."""
    return TextColumns(s.text_column, s.text_pair_column, s.label_column)


def open_samples(data: str | tuple[str, ...], card: ModelCard, *, data_root: str | None) -> Source:
    """The texts or images of DATA, for the model of a card."""
    if card.task != TEXT_CLASSIFICATION:
        return open_source(data, data_root=data_root)
    columns = card.task_state.get("columns", {})
    return open_texts(data, TextColumns(columns.get("text"), columns.get("pair"), given=False))
