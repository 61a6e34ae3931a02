"""Experiment trackers beside metrics.jsonl: TensorBoard, W&B and MLflow, imported on demand.

Each logger gets every record of a run in a separate thread, so that a step never waits for the
network. metrics.jsonl remains the reference; a logger that fails is reported once and disabled.
The run's `loggers.json` stores the loggers' run ids, so that a resumed run continues there.
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
from unfreeze.runtime.run_folder import RunFolder, read_metrics

IDS = "loggers.json"
PROJECT = "unfreeze"  # default W&B project and MLflow experiment
CLOSE_TIMEOUT = 60.0  # seconds for a logger to send its remaining records at the end
Values = Mapping[str, float]


@dataclass(frozen=True)
class LoggerArguments:
    """Arguments of a logger; `known` is the logger's run id when resuming, "" for a new run."""

    run: RunFolder
    settings: Mapping[str, Any]
    step: int  # where the run starts or resumes
    recorded: int  # the last recorded step of the earlier process
    known: str


class Logger(Protocol):
    """The interface of a logger; `id` is its run id, for resuming."""

    id: str

    def metric(self, step: int, values: Values) -> None:
        """Log `split/name` -> number of one step; steps logged before a resume are kept."""

    def settled(self) -> None:
        """Called when no record is waiting: a good time to flush."""

    def close(self) -> None:
        """Write and send everything, and close."""


class TensorBoardLogger:
    """Event files in the run's `tensorboard/`; a resumed run purges the steps it repeats."""

    def __init__(self, opening: LoggerArguments) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.id = opening.known or "tensorboard"
        # a run that starts over without a checkpoint purges everything
        self.begins = opening.step + 1 if opening.known and opening.step else 0
        folder = str(opening.run.file(self.id))
        purge = self.begins if opening.known else None
        self.writer = cast(Any, SummaryWriter(folder, purge_step=purge))
        if not self.begins:
            shown = {name: _flat(value) for name, value in opening.settings.items()}
            for summary in hparams(shown, {}):  # type: ignore[no-untyped-call]
                self.writer.file_writer.add_summary(summary)

    def metric(self, step: int, values: Values) -> None:
        """Log one scalar per value."""
        if step >= self.begins:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def settled(self) -> None:
        """Flush to disk."""
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandbLogger:
    """A W&B run; for steps that are repeated after a resume the first values are kept."""

    def __init__(self, opening: LoggerArguments) -> None:
        import wandb

        self.id = opening.known or uuid.uuid4().hex[:8]
        self.wandb_run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=opening.run.path.name,
            id=self.id,
            resume="allow",
            dir=str(opening.run.path),
            settings=wandb.Settings(
                console="off", finish_timeout=CLOSE_TIMEOUT, finish_timeout_raises=True
            ),
        )
        settings = {name: _flat(value) for name, value in opening.settings.items()}
        self.wandb_run.config.update(settings, allow_val_change=True)
        # the server knows its last step; offline, the files of the earlier process have it
        before = opening.recorded + 1 if opening.known else 0
        self.begins = before if self.wandb_run.offline else int(self.wandb_run.step)

    def metric(self, step: int, values: Values) -> None:
        """Log one row; both splits of a step share it."""
        if step >= self.begins:
            self.wandb_run.log(dict(values), step=step)

    def settled(self) -> None:
        """Nothing: W&B sends in its own process."""

    def close(self) -> None:
        """Wait until everything is sent; raises if the server does not respond."""
        self.wandb_run.finish()


class MLflowLogger:
    """An MLflow run at MLFLOW_TRACKING_URI; steps that it already has are not sent again."""

    def __init__(self, opening: LoggerArguments) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        if opening.known:
            self.id = opening.known
            self.client.update_run(self.id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            experiment_id = (
                experiment.experiment_id if experiment else self.client.create_experiment(name)
            )
            created = self.client.create_run(experiment_id, run_name=opening.run.path.name)
            self.id = created.info.run_id
            params = [Param(k, str(_flat(v))) for k, v in opening.settings.items()]
            self.client.log_batch(self.id, params=params)
        metrics = self.client.get_run(self.id).data.metrics
        self.there = {
            name: max(m.step for m in self.client.get_metric_history(self.id, name))
            for name in metrics
        }

    def metric(self, step: int, values: Values) -> None:
        """Log one batch of metrics."""
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
        """Nothing: metrics are sent immediately."""

    def close(self) -> None:
        """Mark the run as terminated; a resumed one is set to running again."""
        self.client.set_terminated(self.id)


KINDS: dict[str, Callable[[LoggerArguments], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """The requested loggers, without `none`; UsageError if a package is missing."""
    requested = tuple(dict.fromkeys(name for name in names if name != "none"))
    if requested and "none" in names:
        raise UsageError(f"--logger none and {requested[0]} cannot be combined.", "Leave one out.")
    for name in requested:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--logger {name}: the package {name} is not installed.",
                f"Install it: pip install 'unfreeze[{name}]'.",
            )
    return requested


@contextlib.contextmanager
def logging_to(
    names: Sequence[str],
    run: RunFolder,
    settings: Mapping[str, Any],
    step: int,
    console: Console,
) -> Iterator[None]:
    """Within the block records of `run` also go to these loggers.

    `settings`: logged as hyper-parameters; `step`: where the run starts or resumes. A logger that
    is new to the run first gets the records in metrics.jsonl.
    """
    ids = _ids(run)
    couriers = []
    for name in check_loggers(names) if run.writes else ():
        opening = LoggerArguments(run, settings, step, run.recorded, ids.get(name, ""))
        couriers.append(LoggerThread(name, opening, console))
    run.listeners += [courier.take for courier in couriers]
    try:
        yield
    finally:
        for courier in couriers:
            run.listeners.remove(courier.take)
            courier.close()


class LoggerThread:
    """Sends records to one logger in a separate thread; a failure is reported once."""

    def __init__(self, name: str, opening: LoggerArguments, console: Console) -> None:
        self.name, self.console, self.dropped = name, console, False
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        for record in read_metrics(opening.run.path):
            self._waiting.put(record)
        self._thread = threading.Thread(target=self._work, args=(opening,), daemon=True)
        self._thread.start()

    def take(self, record: dict[str, Any]) -> None:
        """Queue one record of metrics.jsonl; returns immediately."""
        if not self.dropped:
            self._waiting.put(dict(record))

    def close(self) -> None:
        """Wait until all records are sent, for about a minute at most."""
        self._waiting.put(None)
        self._thread.join(CLOSE_TIMEOUT + 5)
        if self._thread.is_alive():
            self._drop("no response")

    def _work(self, opening: LoggerArguments) -> None:
        try:
            logger = KINDS[self.name](opening)
            _store_id(opening.run, self.name, logger.id)
            while (record := self._waiting.get()) is not None:
                logger.metric(record.get("step", 0), values_of(record))
                if self._waiting.empty():
                    logger.settled()
            logger.close()
        # no error of a logger may fail the training
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
    """`split/name` -> number for all numbers in a record except the step."""
    split = record.get("split", "train")
    return {
        f"{split}/{name}": float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _flat(value: Any) -> bool | int | float | str:
    """A setting as a scalar for all loggers: lists joined by spaces, None as `auto`."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) else str(value or "auto")


_IDS_LOCK = threading.Lock()


def _ids(run: RunFolder) -> dict[str, str]:
    path = run.file(IDS)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _store_id(run: RunFolder, name: str, id: str) -> None:
    with _IDS_LOCK:
        write_json(run.file(IDS), {**_ids(run), name: id})
