"""Checkpoints of fine-tuning, last and best, written by rank 0."""

import copy
import dataclasses
import time
from collections.abc import Collection, Mapping
from typing import Any

from unfreeze.checkpoints.state import load_state, save_last, save_state
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit

SAVE_SECONDS = 300.0  # longest interval between checkpoints, also within an epoch
SHORT_SECONDS = 30.0  # shortest interval when training on cached features
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class CheckpointWriter:
    """Writes checkpoints; the best one may wait in memory until the next last.ckpt."""

    def __init__(self, folder: RunFolder, processes: Distributed | None = None) -> None:
        self.folder, self.processes = folder, processes or Distributed()
        self.deadline = TimeLimit()
        self.waiting: dict[str, Any] | None = None  # best state, not written yet
        self.written = time.monotonic()
        self.step = -1  # of last.ckpt

    @property
    def age(self) -> float:
        """Seconds since the last write."""
        return time.monotonic() - self.written

    @property
    def late(self) -> bool:
        """Whether to write a checkpoint within the epoch."""
        return self.age > SAVE_SECONDS or self.deadline.unmeasured

    def last(self, state: dict[str, Any]) -> None:
        """Write last.ckpt, after a waiting best.ckpt, so that a resume finds the best one."""
        waiting, self.waiting = self.waiting, None
        with self.deadline.timing("save"):
            self.processes.on_rank_zero(lambda: self._write_last(state, waiting))
        self.written, self.step = time.monotonic(), int(state["step"])

    def best(self, state: dict[str, Any]) -> None:
        """Write best.ckpt."""
        with self.deadline.timing("save"):
            self.processes.on_rank_zero(lambda: save_state(self.folder.file(BEST), state))
        self.written = time.monotonic()

    def own(self, state: dict[str, Any]) -> None:
        """Write a permanent checkpoint, named by epochs done, loss and, if known, accuracy."""
        accuracy = state["metrics"]["val_accuracy"]
        metrics = f"loss-{state['loss']:.3f}" + ("" if accuracy is None else f"_acc-{accuracy:.3f}")
        path = self.folder.file(f"checkpoints/epoch-{state['epoch']:04d}_{metrics}.ckpt")
        with self.deadline.timing("save"):
            self.processes.on_rank_zero(lambda: save_state(path, state))

    def later(self, state: dict[str, Any], still: Collection[str]) -> None:
        """Keep the best state in memory; frozen entries (`still`) are not copied."""
        for name in {"model", "average"} & state.keys():
            state[name] = {
                entry: value if entry in still else value.clone()
                for entry, value in state[name].items()
            }
        self.waiting = {**state, "optimizer": copy.deepcopy(state["optimizer"])}

    def chosen(self) -> dict[str, Any]:
        """Load best.ckpt, on every process."""
        return self.processes.on_rank_zero(lambda: load_state(self.folder.file(BEST)))

    def _write_last(self, state: dict[str, Any], waiting: dict[str, Any] | None) -> None:
        if waiting is not None:
            save_state(self.folder.file(BEST), waiting)
        save_last(self.folder.file(LAST).parent, state)


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
    ("step", "model", "optimizer", "selection", "card", "settings", "reasons", "frozen", "data")
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
