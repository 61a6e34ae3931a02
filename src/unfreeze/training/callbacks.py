"""Callbacks of the training loop: what happens after a step, besides training.

A callback gets the state and the metrics of the step, and may return an action: to save a
checkpoint, to end training, or to stop with an error. It does not change the trainer. Callbacks run
in the order of their list, on every process, so that collective operations match.
"""

import math
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from unfreeze.data.loading.loader import Batch
from unfreeze.errors import DivergedError, UnfreezeError
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.training.state import TrainState

Logs = dict[str, Any]  # metrics of a step; callbacks add theirs for those after them


@dataclass(frozen=True)
class SaveCheckpoint:
    """Save the state as `name` in checkpoints/ (if given), and as the last checkpoint.

    `deferred`: keep `name` in memory and write it before the next last checkpoint; the entries of
    the model that are named here do not change until then. `interval`: skip it if the last
    checkpoint was saved less than this many seconds ago.
    """

    name: str = ""
    last: bool = True
    deferred: Collection[str] | None = None
    interval: float = 0.0


@dataclass(frozen=True)
class EndTraining:
    """Save the last checkpoint and end the training loop, as after the last step."""


@dataclass(frozen=True)
class StopTraining:
    """Save the last checkpoint and raise the error."""

    error: UnfreezeError


Action = SaveCheckpoint | EndTraining | StopTraining


class BatchSource(Protocol):
    """Yields the batches of a range of global steps, as `Loader` does."""

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of the global steps from `start` to `stop` (exclusive)."""
        ...


class Callback:
    """Base class; every method is optional."""

    key: ClassVar[str] = ""  # of its state in checkpoints; "": it has none
    progress: str = ""  # text for the progress line
    metrics: Mapping[str, Any] = {}  # of the last evaluation, for checkpoints

    def on_start(self, state: TrainState) -> Action | None:
        """Called before the first step of a run, also after a resume."""
        return None

    def before_epoch(
        self, state: TrainState, console: Console, should_stop: Callable[[], bool]
    ) -> BatchSource | None:
        """Called before the first step of an epoch, and after a resume within one.

        May return another source of batches than the data loader. Work that takes long ends early
        when `should_stop()`.
        """
        return None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Called after each step; `logs` has a training record (`loss`, ...) if one was written."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Its state for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""


@dataclass(frozen=True)
class PeriodicCheckpoints(Callback):
    """The last checkpoint every `every` epochs and at the end; a numbered one every `keep`."""

    every: int | None
    keep: int | None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Save if a checkpoint is due; its name has the accuracy if this step was validated."""
        if state.step == state.steps or self._due(state, self.every) or self._due(state, self.keep):
            accuracy = f"_acc-{logs['val_accuracy']:.3f}" if "val_accuracy" in logs else ""
            numbered = f"epoch-{state.epoch:04d}_loss-{state.loss:.3f}{accuracy}.ckpt"
            return SaveCheckpoint(numbered if self._due(state, self.keep) else "")
        return None

    def _due(self, state: TrainState, every: int | None) -> bool:
        return bool(every) and state.ends_epoch and state.epoch % (every or 1) == 0


LOWEST_RANK = 1.5  # effective rank of projected features, below which they collapsed
START = 4  # the start of a run, where nothing is judged, ends after 1/4 of it


@dataclass(frozen=True)
class FeatureCollapse(Callback):
    """Ends a run whose images all get the same features, for tasks without a detector of their own.

    `ignore`: only write it to the log.
    """

    run: RunFolder
    ignore: bool = False

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Check a feature evaluation, except in the first quarter of the run."""
        rank = logs.get("figures", {}).get("effective_rank_projected", math.inf)
        if rank >= LOWEST_RANK or state.step * START < state.steps:
            return None
        sentence = (
            f"Training collapsed by step {state.step}: the projected features have an effective "
            f"rank of {rank:.2f}, so all images have the same features."
        )
        self.run.log(sentence + (" Ignored by --on-collapse ignore." if self.ignore else ""))
        if self.ignore:
            return None
        next_step = "Start a new run with a lower --base-lr, or with --method swav."
        return StopTraining(DivergedError(sentence, next_step))


OnEpoch = Callable[[TrainState, int], None]  # state and number of finished epochs


@dataclass(frozen=True)
class EpochCallback(Callback):
    """Calls a function on rank 0 after each epoch and its checkpoint."""

    function: OnEpoch
    processes: Distributed

    def on_start(self, state: TrainState) -> Action | None:
        """Call again after a resume: the last call may have been interrupted."""
        return self.after_step(state, {})

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Call the function if the step ended an epoch."""
        if state.ends_epoch:
            self.processes.on_rank_zero(lambda: self.function(state, state.epoch))
        return None
