"""The checkpoints of a fine-tuning: the last one and the best, written by the first process."""

import copy
import time
from collections.abc import Collection
from typing import Any

from unfreeze.checkpoints.state import load_state, save_last, save_state
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.processes import Processes
from unfreeze.runtime.runfolder import RunFolder

SAVE_SECONDS = 300.0  # a checkpoint at least this often, inside long epochs too
SHORT_SECONDS = 30.0  # likewise where epochs take less than writing a checkpoint does
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Saves:
    """Writes states; a best one may wait in memory until the next last one is written."""

    def __init__(self, folder: RunFolder, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        self.deadline = Deadline()
        self.waiting: dict[str, Any] | None = None  # a best state that is yet to be written
        self.written = time.monotonic()
        self.step = -1  # of the last one

    @property
    def age(self) -> float:
        """Seconds since something was written."""
        return time.monotonic() - self.written

    @property
    def late(self) -> bool:
        """Whether a checkpoint has to be written inside an epoch."""
        return self.age > SAVE_SECONDS or self.deadline.unmeasured

    def last(self, state: dict[str, Any]) -> None:
        """Where the run stands; the best one that waits comes first.

        So whoever goes on from the last has the best that it speaks of.
        """
        waiting, self.waiting = self.waiting, None
        with self.deadline.timing("save"):
            self.processes.leads(lambda: self._write_last(state, waiting))
        self.written, self.step = time.monotonic(), int(state["step"])

    def best(self, state: dict[str, Any]) -> None:
        """The best so far."""
        with self.deadline.timing("save"):
            self.processes.leads(lambda: save_state(self.folder.file(BEST), state))
        self.written = time.monotonic()

    def own(self, state: dict[str, Any]) -> None:
        """One that stays, named by what it holds: epochs done, loss, accuracy where it is known."""
        accuracy = state["metrics"]["val_accuracy"]
        figures = f"loss-{state['loss']:.3f}" + ("" if accuracy is None else f"_acc-{accuracy:.3f}")
        path = self.folder.file(f"checkpoints/epoch-{state['epoch']:04d}_{figures}.ckpt")
        with self.deadline.timing("save"):
            self.processes.leads(lambda: save_state(path, state))

    def later(self, state: dict[str, Any], still: Collection[str]) -> None:
        """Keep the best so far in memory; entries of `still` do not change and are not copied."""
        for name in {"model", "average"} & state.keys():
            state[name] = {
                entry: value if entry in still else value.clone()
                for entry, value in state[name].items()
            }
        self.waiting = {**state, "optimizer": copy.deepcopy(state["optimizer"])}

    def chosen(self) -> dict[str, Any]:
        """The best one on the disk, in every process."""
        return self.processes.leads(lambda: load_state(self.folder.file(BEST)))

    def _write_last(self, state: dict[str, Any], waiting: dict[str, Any] | None) -> None:
        if waiting is not None:
            save_state(self.folder.file(BEST), waiting)
        save_last(self.folder.file(LAST).parent, state)
