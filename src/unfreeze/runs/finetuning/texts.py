"""Settings of fine-tuning on texts: detection, defaults, and what texts do not have."""

from dataclasses import replace
from typing import Any

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.config.field import flag
from unfreeze.config.finetune import TEXT_CLASSIFICATION, FinetuneOptions, FinetuneSettings
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.data.texts.source import TextColumns, holds_texts, open_texts
from unfreeze.errors import UsageError

EPOCHS, TEXT_EPOCHS = 30, 4
# settings of images, and the values with which they do nothing
OF_IMAGES: dict[str, tuple[Any, ...]] = {
    "image_size": (None,),
    "stem": ("auto", "imagenet"),
    "mean": (None,),
    "std": (None,),
    "range": (None, "auto"),
    "channels": (None,),
    "augment": ("photo", "none"),
    "cache_views": (None, 1),
    "mixup": (0.0,),
    "cutmix": (0.0,),
    "labels": (None,),
}
OF_TEXTS = ("text_column", "text_pair_column", "max_length")


def are_texts(s: FinetuneSettings) -> bool:
    """Whether the samples are texts: by --task, --text-column, or what DATA holds."""
    if s.task != "auto":
        if s.task != TEXT_CLASSIFICATION:
            for name in OF_TEXTS:
                if getattr(s, name) is not None:
                    raise UsageError(f"{flag(name)} is for texts.", f"Omit {flag(name)}.")
        return s.task == TEXT_CLASSIFICATION
    return any(getattr(s, name) is not None for name in OF_TEXTS) or holds_texts(s.data)


def check_text_settings(s: FinetuneSettings) -> None:
    """UsageError for a setting that only images have."""
    for name, nothing in OF_IMAGES.items():
        if getattr(s, name) not in nothing:
            step = "Use --label-column." if name == "labels" else f"Omit {flag(name)}."
            raise UsageError(f"Texts have no {flag(name)}.", step)


def text_columns(s: FinetuneOptions) -> TextColumns:
    """The columns that the settings name."""
    return TextColumns(s.text_column, s.text_pair_column, s.label_column)


def with_defaults(s: FinetuneSettings, *, texts: bool) -> FinetuneSettings:
    """The settings with the defaults that depend on the samples."""
    epochs = s.epochs or (TEXT_EPOCHS if texts else EPOCHS)
    optimizer = ("adamw" if texts else "sgd") if s.optimizer == "auto" else s.optimizer
    augment = "none" if texts else s.augment
    return replace(s, epochs=epochs, optimizer=optimizer, augment=augment)


def open_samples(data: str | tuple[str, ...], card: ModelCard, *, data_root: str | None) -> Source:
    """The texts or images of DATA, for the model of a card."""
    if card.task != TEXT_CLASSIFICATION:
        return open_source(data, data_root=data_root)
    columns = card.task_state.get("columns", {})
    return open_texts(data, TextColumns(columns.get("text"), columns.get("pair"), given=False))
