"""Loggers beside metrics.jsonl: TensorBoard, W&B and MLflow, each loaded only when it is asked for.

Every record of a run is passed on with its step and split, by a thread of the logger's own: a step
never waits for a network. metrics.jsonl stays the record; a logger that fails is named once, in
the log and on the console, and dropped. The run's `loggers.json` keeps the ids under which the
loggers know the run, so that a resumed run goes on there.
"""

import contextlib
import importlib.util
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from unfreeze.errors import UsageError
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console
from unfreeze.runtime.runfolder import RunFolder, read_metrics

IDS = "loggers.json"
PROJECT = "unfreeze"  # W&B's project and MLflow's experiment, where their variables name no other
PATIENCE = 60.0  # seconds that a logger gets at the end to send what it still holds
Values = Mapping[str, float]


@dataclass(frozen=True)
class Opening:
    """What a logger is opened with; `known` is the id of an earlier start, "" for a new run."""

    run: RunFolder
    settings: Mapping[str, Any]
    step: int  # where the run begins or goes on
    recorded: int  # the last step that an earlier start has recorded
    known: str


class Logger(Protocol):
    """One logger, open; `id` is what it is opened with again."""

    id: str

    def metric(self, step: int, values: Values) -> None:
        """Take `split/name` -> number of one step; what is there from an earlier start is kept."""

    def settled(self) -> None:
        """Nothing more is waiting: a time to write."""

    def close(self) -> None:
        """Write and send everything."""


class TensorBoard:
    """Event files in the run's `tensorboard/`; a resumed run hides there what it writes again."""

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.id = opening.known or "tensorboard"
        # a run that starts over, for want of a checkpoint, hides everything
        self.begins = opening.step + 1 if opening.known and opening.step else 0
        folder = str(opening.run.file(self.id))
        purge = self.begins if opening.known else None
        self.writer = cast(Any, SummaryWriter(folder, purge_step=purge))
        if not self.begins:
            shown = {name: _flat(value) for name, value in opening.settings.items()}
            for summary in hparams(shown, {}):  # type: ignore[no-untyped-call]
                self.writer.file_writer.add_summary(summary)

    def metric(self, step: int, values: Values) -> None:
        """One scalar for each value."""
        if step >= self.begins:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def settled(self) -> None:
        """On the disk, so that a crash loses nothing."""
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandB:
    """A W&B run; of steps that are computed again W&B keeps the first values."""

    def __init__(self, opening: Opening) -> None:
        import wandb

        self.id = opening.known or uuid.uuid4().hex[:8]
        self.wandb_run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=opening.run.path.name,
            id=self.id,
            resume="allow",
            dir=str(opening.run.path),
            settings=wandb.Settings(
                console="off", finish_timeout=PATIENCE, finish_timeout_raises=True
            ),
        )
        settings = {name: _flat(value) for name, value in opening.settings.items()}
        self.wandb_run.config.update(settings, allow_val_change=True)
        # the server knows what it has; without one, what was recorded is in the files of before
        before = opening.recorded + 1 if opening.known else 0
        self.begins = before if self.wandb_run.offline else int(self.wandb_run.step)

    def metric(self, step: int, values: Values) -> None:
        """One row; the values of both splits of a step share it."""
        if step >= self.begins:
            self.wandb_run.log(dict(values), step=step)

    def settled(self) -> None:
        """Its own process sends."""

    def close(self) -> None:
        """Waits for what is under way; raises where the server does not answer."""
        self.wandb_run.finish()


class MLflow:
    """An MLflow run where MLFLOW_TRACKING_URI says; steps that are there are not sent again."""

    def __init__(self, opening: Opening) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        if opening.known:
            self.id = opening.known
            self.client.update_run(self.id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self.client.create_experiment(name)
            created = self.client.create_run(place, run_name=opening.run.path.name)
            self.id = created.info.run_id
            params = [Param(k, str(_flat(v))) for k, v in opening.settings.items()]
            self.client.log_batch(self.id, params=params)
        found = self.client.get_run(self.id).data.metrics
        self.there = {
            name: max(m.step for m in self.client.get_metric_history(self.id, name))
            for name in found
        }

    def metric(self, step: int, values: Values) -> None:
        """One batch of metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(name, value, now, step)
            for name, value in values.items()
            if step > self.there.get(name, -1)
        ]
        if new:
            self.client.log_batch(self.id, metrics=new)

    def settled(self) -> None:
        """Everything was sent at once."""

    def close(self) -> None:
        """The run has ended; a resumed one is set running again."""
        self.client.set_terminated(self.id)


KINDS: dict[str, Callable[[Opening], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def available(names: Sequence[str]) -> tuple[str, ...]:
    """The loggers that were asked for; UsageError for one whose package is missing."""
    asked = tuple(dict.fromkeys(name for name in names if name != "none"))
    if asked and "none" in names:
        raise UsageError(f"--logger none and {asked[0]} cannot be combined.", "Leave one out.")
    for name in asked:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--logger {name}: the package {name} is not installed.",
                f"Install it: pip install 'unfreeze[{name}]'.",
            )
    return asked


@contextlib.contextmanager
def passed_on(
    names: Sequence[str],
    run: RunFolder,
    settings: Mapping[str, Any],
    step: int,
    console: Console,
) -> Iterator[None]:
    """Within the block what `run` records also goes to these loggers.

    `settings` become hyper-parameters; `step` is where the run begins or goes on. A logger that
    the run did not have before is given what metrics.jsonl holds.
    """
    ids = _ids(run)
    couriers = []
    for name in available(names) if run.writes else ():
        opening = Opening(run, settings, step, run.recorded, ids.get(name, ""))
        couriers.append(Courier(name, opening, console))
    run.listeners += [courier.take for courier in couriers]
    try:
        yield
    finally:
        for courier in couriers:
            run.listeners.remove(courier.take)
            courier.close()


class Courier:
    """Carries records to one logger on a thread of its own; what fails is said once."""

    def __init__(self, name: str, opening: Opening, console: Console) -> None:
        self.name, self.console, self.dropped = name, console, False
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        for record in read_metrics(opening.run.path):
            self._waiting.put(record)
        self._thread = threading.Thread(target=self._work, args=(opening,), daemon=True)
        self._thread.start()

    def take(self, record: dict[str, Any]) -> None:
        """One record of metrics.jsonl; returns at once."""
        if not self.dropped:
            self._waiting.put(dict(record))

    def close(self) -> None:
        """Waits until everything is delivered, a minute or so at most."""
        self._waiting.put(None)
        self._thread.join(PATIENCE + 5)
        if self._thread.is_alive():
            self._drop("no response")

    def _work(self, opening: Opening) -> None:
        try:
            logger = KINDS[self.name](opening)
            _keep(opening.run, self.name, logger.id)
            while (record := self._waiting.get()) is not None:
                logger.metric(record.get("step", 0), values_of(record))
                if self._waiting.empty():
                    logger.settled()
            logger.close()
        # whatever a foreign library raises, the training is worth more
        except (Exception, SystemExit) as error:
            self._drop(" ".join(f"{type(error).__name__}: {error}".split())[:300])

    def _drop(self, why: str) -> None:
        if not self.dropped:
            self.dropped = True
            self.console.warn(
                f"--logger {self.name} failed and was switched off: {why} "
                "The run continues; metrics.jsonl is complete."
            )


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """`split/name` -> number, of everything in a record that is one; the step is no value."""
    split = record.get("split", "train")
    return {
        f"{split}/{name}": float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _flat(value: Any) -> bool | int | float | str:
    """A setting as every logger takes it: lists by words, None by its own word."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) else str(value or "auto")


_KEEPING = threading.Lock()


def _ids(run: RunFolder) -> dict[str, str]:
    path = run.file(IDS)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _keep(run: RunFolder, name: str, id: str) -> None:
    with _KEEPING:
        write_json(run.file(IDS), {**_ids(run), name: id})
