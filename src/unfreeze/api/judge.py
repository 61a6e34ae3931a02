"""The evaluation split of a comparison."""

from typing import Any

from unfreeze.api.labelling import read_labels, unchecked
from unfreeze.data.index import TEST, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError
from unfreeze.runtime.console import Quiet
from unfreeze.settings.compare import CompareSettings
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.shared import said_of, spoken


def chosen_judge(s: CompareSettings, finetune_settings: FinetuneSettings) -> dict[str, Any]:
    """Settings for `evaluate`: the data of `--test`, else test of DATA, else the validation set.

    DataError if there is no validation set either.
    """
    if s.test:
        return {"data": (s.test,), "split": None}
    labels = said_of(s)
    index = build_index(open_source(s.data, data_root=s.data_root), **labels)
    if len(index.where(TEST)):
        return {"data": s.data, "split": "test", **labels}
    if not len(unchecked(finetune_settings, read_labels(finetune_settings, Quiet())).val):
        raise DataError(
            f"Nothing to evaluate on: {spoken(s.data)} has no test split, and no validation images "
            "are held out.",
            "Give labelled images with --test, or add a test split to DATA.",
        )
    return {"data": s.data, "split": "val", **labels}
