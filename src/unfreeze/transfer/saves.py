"""Checkpoints of fine-tuning, last and best, written by rank 0."""

import copy
import time
from collections.abc import Collection
from typing import Any

from unfreeze.checkpoints.state import load_state, save_last, save_state
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.processes import Processes
from unfreeze.runtime.runfolder import RunFolder

SAVE_SECONDS = 300.0  # longest interval between checkpoints, also within an epoch
SHORT_SECONDS = 30.0  # shortest interval when training on cached features
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Saves:
    """Writes checkpoints; the best one may wait in memory until the next last.ckpt."""

    def __init__(self, folder: RunFolder, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        self.deadline = Deadline()
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
            self.processes.leads(lambda: self._write_last(state, waiting))
        self.written, self.step = time.monotonic(), int(state["step"])

    def best(self, state: dict[str, Any]) -> None:
        """Write best.ckpt."""
        with self.deadline.timing("save"):
            self.processes.leads(lambda: save_state(self.folder.file(BEST), state))
        self.written = time.monotonic()

    def own(self, state: dict[str, Any]) -> None:
        """Write a permanent checkpoint, named by epochs done, loss and, if known, accuracy."""
        accuracy = state["metrics"]["val_accuracy"]
        metrics = f"loss-{state['loss']:.3f}" + ("" if accuracy is None else f"_acc-{accuracy:.3f}")
        path = self.folder.file(f"checkpoints/epoch-{state['epoch']:04d}_{metrics}.ckpt")
        with self.deadline.timing("save"):
            self.processes.leads(lambda: save_state(path, state))

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
        return self.processes.leads(lambda: load_state(self.folder.file(BEST)))

    def _write_last(self, state: dict[str, Any], waiting: dict[str, Any] | None) -> None:
        if waiting is not None:
            save_state(self.folder.file(BEST), waiting)
        save_last(self.folder.file(LAST).parent, state)
