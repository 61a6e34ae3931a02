"""Feature evaluation during pretraining: metrics of the network on a fixed sample.

It does not affect training: no random number is drawn, no running statistic updated, and every
module returns to its own mode. A run with evaluations equals a run without, bit for bit.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unfreeze.checkpoints.state import BEST_CHECKPOINT
from unfreeze.evaluation.knn import knn_predict, leave_one_out
from unfreeze.evaluation.ridge import ridge_hits
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


def enough_labels(labels: npt.NDArray[np.signedinteger[Any]]) -> bool:
    """Whether k-NN accuracy can be computed with `labels` `[N]`, -1: unlabelled."""
    known = labels[labels >= 0]
    return len(np.unique(known)) >= 2 and len(known) >= 20


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
        if not enough_labels(self.labels.numpy()):
            return ""
        return "held-out" if self.queries is None else "val"


@dataclass(frozen=True)
class FeatureEvaluation:
    """A feature evaluation after `epoch` epochs: label-free metrics, and k-NN with labels.

    `linear_correct`: images that a linear classifier classifies correctly, in runs that began from
    weights. `gained`, `lost`: images that it (else k-NN) classifies correctly now but not at the
    start, and the reverse.
    """

    epoch: int
    step: int
    figures: dict[str, float]
    metric: str  # that selects the best epoch without labels
    split: str = ""
    correct: int = 0
    total: int = 0
    gained: int = 0
    lost: int = 0
    linear_correct: int | None = None

    @property
    def knn(self) -> float | None:
        """k-NN accuracy, 0..1; None without labels."""
        return self.correct / self.total if self.total else None

    @property
    def linear(self) -> float | None:
        """Accuracy of a linear classifier on the features, 0..1; None if it was not fitted."""
        return None if self.linear_correct is None else self.linear_correct / self.total

    @property
    def selects(self) -> str:
        """What selects the best epoch: `linear`, else `knn`, else the task's metric."""
        if self.linear is not None:
            return "linear"
        return self.metric if self.knn is None else "knn"

    @property
    def score(self) -> float:
        """The value of `selects`."""
        accuracy = self.knn if self.linear is None else self.linear
        return self.figures[self.metric] if accuracy is None else accuracy

    @property
    def difference(self) -> float:
        """Accuracy (`score`) minus that of the start; 0 without labels."""
        return (self.gained - self.lost) / self.total if self.total else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of `difference`, paired by image; 0 without labels.

        With one pseudo-observation on each side (Bonett and Price 2012), so that a single image
        is never more than noise.
        """
        if not self.total:
            return 0.0
        n = self.total + 2
        return math.sqrt(self.gained + self.lost + 2 - (self.gained - self.lost) ** 2 / n) / n


class FeatureEvaluator(Callback):
    """Evaluates every `every` epochs, at the start and the end; saves the best checkpoint.

    `task`: the method that is trained. `sample`: None on other processes than rank 0, which
    evaluates for all. `every` 0: never. `continued`: training began from weights. Then the start is
    the first best checkpoint where labels exist, and a later one replaces it only if the accuracy
    of a linear classifier on its features is higher by more than a standard error.
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
        continued: bool = False,
    ) -> None:
        self.task, self.sample, self.every, self.continued = task, sample, every, continued
        self.compute, self.run = compute, run
        self.processes, self.time_limit = processes, time_limit
        self.start: FeatureEvaluation | None = None
        self.last: FeatureEvaluation | None = None
        self.best: FeatureEvaluation | None = None
        self.below = 0  # evaluations in a row that are below the start
        self.start_hits: torch.Tensor | None = None  # bool [M], on rank 0: correct at the start

    @property
    def progress(self) -> str:  # type: ignore[override]
        """Text for the progress line."""
        if self.last is None:
            return ""
        if self.last.knn is None:
            return f"{self.last.metric.replace('_', ' ')} {_shown(self.last)}"
        name = "k-NN" if self.last.linear is None else "linear probe"
        return f"{name} {100 * self.last.score:.1f} %"

    def on_start(self, state: TrainState) -> Action | None:
        """Evaluate the start, the baseline of all later evaluations."""
        if not (self.every and self.start is None and not state.step and state.steps):
            return None
        self.start = self.evaluate(state)
        if not self.judges_start:
            return None
        self.best = self.start
        return SaveCheckpoint(BEST_CHECKPOINT, last=False)

    @property
    def judges_start(self) -> bool:
        """Whether the start is a candidate for the best checkpoint: weights, and labels."""
        return self.continued and self.start is not None and self.start.knn is not None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Evaluate if it is due after the last step; save best.ckpt if the score is best."""
        due = self.every and (state.epoch % self.every == 0 or state.step == state.steps)
        if not due or not state.ends_epoch:
            return None
        with self.time_limit.timing("evaluation"):
            self.last = self.evaluate(state)
        logs["figures"] = self.last.figures
        if self.judges_start:
            difference, error = self.last.difference, self.last.standard_error
            self.below = self.below + 1 if difference < -error else 0
            if difference <= error:
                return None
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
            queries = self._query_features(state, sample)
        knn = knn_hits(h, sample.labels, queries, sample.queries)
        linear = None
        if self.continued and sample.knn_split:
            linear = linear_hits(h, sample.labels, queries, sample.queries)
        hits = knn if linear is None else linear
        if self.start_hits is None or not state.step:
            self.start_hits = hits
        before = self.start_hits
        return FeatureEvaluation(
            state.epoch,
            state.step,
            figures,
            task.selection_metric,
            sample.knn_split,
            correct=int(knn.sum()),
            total=len(knn),
            gained=int((hits & ~before).sum()),
            lost=int((before & ~hits).sum()),
            linear_correct=None if linear is None else int(linear.sum()),
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

    def _query_features(self, state: TrainState, sample: EvaluationSample) -> torch.Tensor | None:
        """Backbone features of the images of a validation split, `[M, D]`; None without one."""
        if not sample.knn_split or sample.queries is None or sample.query_views is None:
            return None
        (features,), _ = self._encode(state, sample.query_views, len(sample.queries))
        return features

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        results = {"start": self.start, "last": self.last, "best": self.best}
        plain = {name: result and asdict(result) for name, result in results.items()}
        return {**plain, "below": self.below, "start_hits": self.start_hits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.start, self.last, self.best = (
            state[name] and FeatureEvaluation(**state[name]) for name in ("start", "last", "best")
        )
        self.below, self.start_hits = state["below"], state["start_hits"]


def knn_hits(
    features: torch.Tensor,
    labels: torch.Tensor,
    query_features: torch.Tensor | None,
    queries: torch.Tensor | None,
) -> torch.Tensor:
    """Whether k-NN is right, bool: leave-one-out on `features` `[N, D]`, or of queries `[M, D]`.

    `labels` `[N]`: -1 if unlabelled; `queries` `[M]`: the labels of the queries. `[0]` if there
    are too few labels.
    """
    if not enough_labels(labels.numpy()):
        return torch.zeros(0, dtype=torch.bool)
    known = (labels >= 0).nonzero().squeeze(1)
    features, labels = features.cpu()[known], labels[known]
    k = neighbour_count(labels)
    if query_features is None or queries is None:
        predicted, truth = leave_one_out(features, labels, k=k), labels
    else:
        predicted, truth = knn_predict(features, labels, query_features.cpu(), k=k), queries
    return predicted == truth


def linear_hits(
    features: torch.Tensor,
    labels: torch.Tensor,
    query_features: torch.Tensor | None,
    queries: torch.Tensor | None,
) -> torch.Tensor:
    """As `knn_hits`, of a ridge classifier."""
    known = (labels >= 0).nonzero().squeeze(1)
    if query_features is not None:
        query_features = query_features.cpu()
    return ridge_hits(features.cpu()[known], labels[known], query_features, queries)


def _shown(result: FeatureEvaluation) -> str:
    share = result.metric == "information"
    return f"{100 * result.score:.1f} %" if share else f"{result.score:.1f}"


def metric_records(result: FeatureEvaluation) -> list[dict[str, Any]]:
    """Records of an evaluation for metrics.jsonl, where epochs count from 0."""
    position = {"step": result.step, "epoch": max(0, result.epoch - 1)}
    figures = {name: float(f"{value:.6g}") for name, value in result.figures.items()}
    lines = [{**position, "split": LOOKED, **figures}]
    if result.knn is not None:
        found = {"knn_accuracy": result.knn, "correct": result.correct, "total": result.total}
        if result.linear is not None:
            found["linear_accuracy"] = result.linear
        lines.append({**position, "split": result.split, **found})
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
