"""Resuming a fine-tuning run: which settings may change, and which checkpoints fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import DataError, UsageError, WeightsError

# settings that do not affect the result
FREE = frozenset(
    (
        "data",
        "data_root",
        "device",
        "workers",
        "store",
        "store_budget",
        "scan",
        "patience",
        "checkpoint_every",
        "keep_every",
        "logger",
    )
)
OFF = {field.name: field.default for field in dataclasses.fields(FinetuneSettings)}
NEEDED = frozenset(
    ("step", "model", "optimizer", "callbacks", "card", "settings", "reasons", "frozen", "data")
)


def check_resumable(state: Mapping[str, Any], given: Mapping[str, Any], fingerprint: str) -> None:
    """Raise if the checkpoint `state` cannot resume with the settings `given` or this dataset.

    None in `given` means not set: the run's value is used. The value originally given is also
    accepted where the run resolved it to another one, so that the same command can be repeated.
    """
    missing = sorted(NEEDED - set(state))
    if missing:
        raise WeightsError(
            f"Not a checkpoint of finetune: it lacks {', '.join(missing)} and has "
            f"{', '.join(sorted(map(str, state)))}.",
            "Use the folder of a fine-tuning run, or start a new run in another one.",
        )
    for name, value in given.items():
        # a setting that did not exist yet was off
        before = state["settings"].get(name, OFF.get(name))
        original = state.get("asked", {}).get(name, before)
        if name not in FREE and value not in (None, "auto", before, original):
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"The run was started with {flag} {before} and cannot resume with {value}.",
                f"Leave {flag} unchanged, or start a new run in another --out.",
            )
    if state["data"] != fingerprint:
        raise DataError(
            "The dataset has changed since the run was started (names, sizes or times differ).",
            "Restore the original files, or start a new run in another --out.",
        )


def merge_settings(state: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings, with the current values of those that may change."""
    free = {name: value for name, value in given.items() if name in FREE}
    return {**state["settings"], **free}
