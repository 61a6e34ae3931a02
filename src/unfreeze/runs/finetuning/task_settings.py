"""Settings that depend on the task: defaults, and which settings a task does not have."""

from typing import Any

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.field import flag
from unfreeze.config.finetune import (
    CLASSIFICATION,
    MULTILABEL,
    SEGMENTATION,
    TEXT_CLASSIFICATION,
    FinetuneOptions,
    FinetuneSettings,
)
from unfreeze.data.index.index import has_label_sets
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.data.texts.source import TextColumns, TextSource, holds_texts, open_texts
from unfreeze.errors import UsageError
from unfreeze.runtime.console import Console
from unfreeze.tasks.registry import supervised_task, task_of_data
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
# settings of single tasks
OF_TASKS: dict[str, tuple[str, ...]] = {
    "masks": (SEGMENTATION,),
    "mask_classes": (SEGMENTATION,),
    "ignore_index": (SEGMENTATION,),
    "loss": (MULTILABEL, SEGMENTATION),
    "label_separator": (MULTILABEL,),
    "label_columns": (MULTILABEL,),
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


def check_named_task(s: FinetuneOptions) -> None:
    """UsageError for an unknown --task, or a setting of another one; reads nothing."""
    if s.task != "auto":
        supervised_task(s.task)
        _refuse_settings_of_others(s, s.task)


def task_of_settings(s: FinetuneSettings, source: Source) -> SupervisedTask | None:
    """The task of --task, or that of the data, with its settings; None for classification."""
    name = _task_of_data(s, source) if s.task == "auto" else s.task
    _refuse_settings_of_others(s, name)
    task = supervised_task(name)
    if task is None:
        _refuse_tiles(s)
        return None
    check_task_settings(s, task)
    task.configure(s)
    return task


def _task_of_data(s: FinetuneSettings, source: Source) -> str:
    if isinstance(source, TextSource):
        return CLASSIFICATION
    if s.masks is not None or s.mask_classes is not None:
        return SEGMENTATION
    if s.label_separator is not None or s.label_columns is not None:
        return MULTILABEL
    named = s.labels is not None or s.label_column is not None  # labels of masks have no names
    found = CLASSIFICATION if named else task_of_data("auto", source)
    several = found == CLASSIFICATION and has_label_sets(source, s.labels, s.label_column)
    return MULTILABEL if several else found


def _refuse_settings_of_others(s: FinetuneOptions, task: str) -> None:
    """UsageError for a setting that is of other tasks than this one."""
    for name, tasks in OF_TASKS.items():
        if getattr(s, name) is not None and task not in tasks:
            names = " or ".join(tasks)
            raise UsageError(
                f"{flag(name)} is for --task {names}; this is {task}.",
                f"Omit {flag(name)}, or give --task.",
            )


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
