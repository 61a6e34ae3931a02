"""Going on with a run: what may change between two starts, and what may not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.settings.finetune import FinetuneSettings

# how the work is done and kept, not what comes out
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
    ("step", "model", "optimizer", "selection", "card", "settings", "reasons", "frozen", "data")
)


def check_resumable(state: Mapping[str, Any], given: Mapping[str, Any], fingerprint: str) -> None:
    """Raises where `state` cannot go on with the settings `given` or with these images.

    A value of None in `given` was left open and takes what the run began with. Whoever repeats
    the command asks for what was asked for, also where something else came of it.
    """
    lacking = sorted(NEEDED - set(state))
    if lacking:
        raise WeightsError(
            f"The checkpoint is no fine-tuning's: it lacks {', '.join(lacking)} and has "
            f"{', '.join(sorted(map(str, state)))}.",
            "Name the folder of a fine-tuning run, or start anew in another one.",
        )
    for name, value in given.items():
        # an option that came later was off
        before = state["settings"].get(name, OFF.get(name))
        asked = state.get("asked", {}).get(name, before)
        if name not in FREE and value not in (None, "auto", before, asked):
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"The run began with {flag} {before}; it cannot go on with {value}.",
                f"Leave {flag} as it was, or start anew in another --out.",
            )
    if state["data"] != fingerprint:
        raise DataError(
            "The images are not those the run began with (names, sizes or times differ).",
            "Bring them back as they were, or start anew in another --out.",
        )


def merged(state: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings, with what is free to change as `given` now."""
    free = {name: value for name, value in given.items() if name in FREE}
    return {**state["settings"], **free}
