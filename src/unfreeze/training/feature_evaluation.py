"""Feature evaluation during pretraining: metrics of the network on a fixed sample.

It does not affect training: no random number is drawn, no running statistic updated, and every
module returns to its own mode. A run with evaluations equals a run without, bit for bit.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unfreeze.checkpoints.state import BEST_CHECKPOINT
from unfreeze.evaluation.knn import knn_predict, leave_one_out
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.tasks.base import PretrainTask
from unfreeze.training.callbacks import Action, Callback, Logs, SaveCheckpoint
from unfreeze.training.compute import ComputeContext
from unfreeze.training.state import TrainState

ROWS = 256  # images per forward pass
LOOKED = "figures"  # `split` of the records of these metrics
# positions of images -> one uint8 tensor [B, S, S, 3] per view
Cutter = Callable[[Sequence[int]], list[torch.Tensor]]


@dataclass(frozen=True)
class EvaluationSample:
    """Fixed images of a run: centre crops of all (`centres`), two random `views` of `pairs`.

    `labels` `[N]`, -1: unlabelled. `queries`: labels of the images of a validation split, whose
    centre crops `query_views` returns; without them k-NN is leave-one-out on the labelled images.
    `teacher`: k-NN accuracy of a teacher on the same images; None without one.
    """

    centres: Cutter
    views: Cutter
    pairs: int
    labels: torch.Tensor
    queries: torch.Tensor | None = None
    query_views: Cutter | None = None
    teacher: float | None = None

    @property
    def knn_split(self) -> str:
        """Split that k-NN accuracy is computed on: `val`, `held-out`, or "" without labels."""
        labels = self.labels[self.labels >= 0]
        if len(torch.unique(labels)) < 2 or len(labels) < 20:
            return ""
        return "held-out" if self.queries is None else "val"


@dataclass(frozen=True)
class FeatureEvaluation:
    """A feature evaluation after `epoch` epochs: label-free metrics, and k-NN with labels."""

    epoch: int
    step: int
    figures: dict[str, float]
    metric: str  # that selects the best epoch without labels
    split: str = ""
    correct: int = 0
    total: int = 0

    @property
    def knn(self) -> float | None:
        """k-NN accuracy, 0..1; None without labels."""
        return self.correct / self.total if self.total else None

    @property
    def score(self) -> float:
        """The value that selects the best epoch: k-NN accuracy, else the task's metric."""
        return self.figures[self.metric] if self.knn is None else self.knn


class FeatureEvaluator(Callback):
    """Evaluates every `every` epochs, at the start and the end; saves the best checkpoint.

    `task`: the method that is trained. `sample`: None on other processes than rank 0, which
    evaluates for all. `every` 0: never.
    """

    key = "evaluation"

    def __init__(
        self,
        task: PretrainTask,
        sample: EvaluationSample | None,
        every: int,
        compute: ComputeContext,
        run: RunFolder,
        *,
        processes: Distributed,
        time_limit: TimeLimit,
    ) -> None:
        self.task, self.sample, self.every = task, sample, every
        self.compute, self.run = compute, run
        self.processes, self.time_limit = processes, time_limit
        self.start: FeatureEvaluation | None = None
        self.last: FeatureEvaluation | None = None
        self.best: FeatureEvaluation | None = None

    @property
    def progress(self) -> str:  # type: ignore[override]
        """Text for the progress line."""
        if self.last is None:
            return ""
        if self.last.knn is None:
            return f"{self.last.metric.replace('_', ' ')} {_shown(self.last)}"
        return f"k-NN {100 * self.last.knn:.1f} %"

    def on_start(self, state: TrainState) -> None:
        """Evaluate the untrained start, the baseline of all later evaluations."""
        if self.every and self.start is None and not state.step and state.steps:
            self.start = self.evaluate(state)

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Evaluate if it is due after the last step; save best.ckpt if the score is best."""
        due = self.every and (state.epoch % self.every == 0 or state.step == state.steps)
        if not due or not state.ends_epoch:
            return None
        with self.time_limit.timing("evaluation"):
            self.last = self.evaluate(state)
        logs["figures"] = self.last.figures
        if self.best is not None and self.last.score <= self.best.score:
            return None
        self.best = self.last
        return SaveCheckpoint(BEST_CHECKPOINT, last=False)

    def evaluate(self, state: TrainState) -> FeatureEvaluation:
        """Evaluate now and write the records; the same result in every process."""
        result = self.processes.on_rank_zero(lambda: self._evaluate(state))
        for record in metric_records(result):
            self.run.metric(record)
        return result

    def _evaluate(self, state: TrainState) -> FeatureEvaluation:
        sample, task = self.sample, self.task
        if sample is None:
            raise ValueError("only rank 0 evaluates, and it has the sample")
        with evaluating(state.model):
            (h,), (Z,) = self._encode(state, sample.centres, len(sample.labels))
            _, pair = self._encode(state, sample.views, sample.pairs)
            figures = task.feature_metrics(h, Z, pair)
            counts = self._knn_counts(state, sample, h)
        return FeatureEvaluation(
            state.epoch, state.step, figures, task.selection_metric, sample.knn_split, *counts
        )

    def _encode(
        self, state: TrainState, cut: Cutter, count: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(backbone features, projected unit features) of `count` images, one tensor per view."""
        parts = []
        for start in range(0, count, ROWS):
            views = cut(range(start, min(start + ROWS, count)))
            parts.append([self._features(state, view) for view in views])
        by_view = [
            [torch.cat(same) for same in zip(*rows, strict=True)]
            for rows in zip(*parts, strict=True)
        ]
        return [h for h, _ in by_view], [Z for _, Z in by_view]

    def _features(self, state: TrainState, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = next(state.model.parameters()).dtype
        with autocast(self.compute.device, self.compute.precision):
            h = self.task.backbone(self.compute.network_input(view, dtype))
            return h, self.task.project(h)

    def _knn_counts(
        self, state: TrainState, sample: EvaluationSample, h: torch.Tensor
    ) -> tuple[int, int]:
        """(correct, total) of k-NN on the backbone's features."""
        if not sample.knn_split:
            return 0, 0
        query_features = None
        if sample.queries is not None and sample.query_views is not None:
            (query_features,), _ = self._encode(state, sample.query_views, len(sample.queries))
        return knn_counts(h, sample.labels, query_features, sample.queries)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        results = {"start": self.start, "last": self.last, "best": self.best}
        return {name: result and asdict(result) for name, result in results.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        results = {name: value and FeatureEvaluation(**value) for name, value in state.items()}
        self.start, self.last, self.best = results["start"], results["last"], results["best"]


def knn_counts(
    features: torch.Tensor,
    labels: torch.Tensor,
    query_features: torch.Tensor | None,
    queries: torch.Tensor | None,
) -> tuple[int, int]:
    """(correct, total) of k-NN: leave-one-out on `features` `[N, D]`, or of queries `[M, D]`.

    `labels` `[N]`: -1 if unlabelled; `queries` `[M]`: the labels of the queries.
    """
    known = (labels >= 0).nonzero().squeeze(1)
    features, labels = features.cpu()[known], labels[known]
    k = neighbour_count(labels)
    if query_features is None or queries is None:
        predicted, truth = leave_one_out(features, labels, k=k), labels
    else:
        predicted, truth = knn_predict(features, labels, query_features.cpu(), k=k), queries
    return int((predicted == truth).sum()), len(truth)


def _shown(result: FeatureEvaluation) -> str:
    share = result.metric == "information"
    return f"{100 * result.score:.1f} %" if share else f"{result.score:.1f}"


def metric_records(result: FeatureEvaluation) -> list[dict[str, Any]]:
    """Records of an evaluation for metrics.jsonl, where epochs count from 0."""
    position = {"step": result.step, "epoch": max(0, result.epoch - 1)}
    figures = {name: float(f"{value:.6g}") for name, value in result.figures.items()}
    lines = [{**position, "split": LOOKED, **figures}]
    if result.knn is not None:
        counts = {"correct": result.correct, "total": result.total}
        lines.append({**position, "split": result.split, "knn_accuracy": result.knn, **counts})
    return lines


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context: the model is in eval mode, without gradients; modes are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def neighbour_count(labels: torch.Tensor) -> int:
    """Number of neighbours k: 20, at most half of the mean class size."""
    return max(1, min(20, len(labels) // (2 * len(torch.unique(labels)))))
