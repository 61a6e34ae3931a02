"""Feature evaluation during pretraining: metrics of the network on a fixed sample.

It does not affect training: no random number is drawn, no running statistic updated, and every
module returns to its own mode. A run with evaluations equals a run without, bit for bit.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from unfreeze.checkpoints.state import BEST_CHECKPOINT, save_state
from unfreeze.evaluation.knn import knn_predict, leave_one_out
from unfreeze.runtime.device import autocast
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.metrics import (
    agreement,
    alignment,
    code_entropy,
    duplicate_share,
    effective_rank,
    feature_std,
    mutual_information,
    prototypes_in_use,
    uniformity,
    usage_entropy,
)
from unfreeze.swav.presets import epsilon_of
from unfreeze.swav.sinkhorn import sinkhorn
from unfreeze.swav.train_state import training_state

if TYPE_CHECKING:
    from unfreeze.swav.trainer import PretrainTrainer

ROWS = 256  # images per forward pass
# selects the best epoch without labels: the metric closest to k-NN accuracy (rank correlation over
# the epochs of a run 0.51; of the effective rank 0.06: docs/LOG.md)
UNLABELLED = "information"
LOOKED = "figures"  # `split` of the records of these metrics
# positions of images -> one uint8 tensor [B, S, S, 3] per view
Cutter = Callable[[Sequence[int]], list[torch.Tensor]]


@dataclass(frozen=True)
class EvaluationSample:
    """Fixed images of a run: centre crops of all (`centres`), two random `views` of `pairs`.

    `labels` `[N]`, -1: unlabelled. `queries`: labels of the images of a validation split, whose
    centre crops `ask` returns; without them k-NN is leave-one-out on the labelled images.
    """

    centres: Cutter
    views: Cutter
    pairs: int
    labels: torch.Tensor
    queries: torch.Tensor | None = None
    ask: Cutter | None = None

    @property
    def asked(self) -> str:
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
    split: str = ""
    correct: int = 0
    total: int = 0

    @property
    def knn(self) -> float | None:
        """k-NN accuracy, 0..1; None without labels."""
        return self.correct / self.total if self.total else None

    @property
    def score(self) -> float:
        """The metric that selects the best epoch: k-NN accuracy, else `information`."""
        return self.figures[UNLABELLED] if self.knn is None else self.knn


class FeatureEvaluator:
    """Evaluates every `every` epochs, at the start and the end; saves the best checkpoint."""

    def __init__(self, sample: EvaluationSample | None, every: int) -> None:
        self.sample, self.every = sample, every
        self.start: FeatureEvaluation | None = None
        self.last: FeatureEvaluation | None = None
        self.best: FeatureEvaluation | None = None

    @property
    def said(self) -> str:
        """Text for the progress line."""
        if self.last is None:
            return ""
        if self.last.knn is None:
            return f"information {100 * self.last.score:.1f} %"
        return f"k-NN {100 * self.last.knn:.1f} %"

    def due(self, epochs: int, total: int) -> bool:
        """Whether an evaluation is due after `epochs` of `total` epochs."""
        return bool(self.every) and (epochs % self.every == 0 or epochs == total)

    def begin(self, trainer: "PretrainTrainer") -> None:
        """Evaluate the untrained start, the baseline of all later evaluations."""
        if self.every and self.start is None and not trainer.step and trainer.plan.steps:
            self.start = self.look(trainer, 0)

    def after_step(self, trainer: "PretrainTrainer") -> FeatureEvaluation | None:
        """Evaluate if it is due after the last step; save best.ckpt if the score is best."""
        epochs, rest = divmod(trainer.step, trainer.plan.steps_per_epoch)
        if rest or not self.due(epochs, trainer.s.epochs or 0):
            return None
        with trainer.deadline.timing("look"):
            self.last = self.look(trainer, epochs)
        trainer.verdict = trainer.verdict or trainer.guard.look(trainer.step, self.last.figures)
        if self.best is None or self.last.score > self.best.score:
            self.best = self.last
            state = training_state(trainer)
            path = trainer.run.file(f"checkpoints/{BEST_CHECKPOINT}")
            trainer.processes.leads(lambda: save_state(path, state))
        trainer.meter.skip()  # exclude the evaluation from the next record's times
        return self.last

    def look(self, trainer: "PretrainTrainer", epochs: int) -> FeatureEvaluation:
        """Evaluate now and write the records; the same result in every process."""
        look = trainer.processes.leads(lambda: self._evaluate(trainer, epochs))
        for record in metric_records(look):
            trainer.run.metric(record)
        return look

    def _evaluate(self, trainer: "PretrainTrainer", epochs: int) -> FeatureEvaluation:
        sample = self.sample
        if sample is None:
            raise ValueError("only rank 0 evaluates, and it has the sample")
        with evaluating(trainer.model):
            (h,), (Z,) = _encode(trainer, sample.centres, len(sample.labels))
            _, pair = _encode(trainer, sample.views, sample.pairs)
            figures = feature_metrics(h, Z, pair, trainer)
            counts = _knn_counts(sample, h, trainer)
        return FeatureEvaluation(epochs, trainer.step, figures, sample.asked, *counts)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        looks = {"start": self.start, "last": self.last, "best": self.best}
        return {name: look and asdict(look) for name, look in looks.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore `state()`."""
        looks = {name: look and FeatureEvaluation(**look) for name, look in state.items()}
        self.start, self.last, self.best = looks["start"], looks["last"], looks["best"]


def metric_records(look: FeatureEvaluation) -> list[dict[str, Any]]:
    """Records of an evaluation for metrics.jsonl, where epochs count from 0."""
    position = {"step": look.step, "epoch": max(0, look.epoch - 1)}
    figures = {name: float(f"{value:.6g}") for name, value in look.figures.items()}
    lines = [{**position, "split": LOOKED, **figures}]
    if look.knn is not None:
        counts = {"correct": look.correct, "total": look.total}
        lines.append({**position, "split": look.split, "knn_accuracy": look.knn, **counts})
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


def feature_metrics(
    h: torch.Tensor, Z: torch.Tensor, pair: list[torch.Tensor], trainer: "PretrainTrainer"
) -> dict[str, float]:
    """All label-free metrics.

    `h` `[N, width]`: backbone features of the centre crops; `Z` `[N, d]`: their projected unit
    features; `pair`: projected unit features of two views.
    """
    s, K = trainer.s, trainer.s.nmb_prototypes or 1
    # with several clusterings, the first one is evaluated
    prototypes = F.normalize(trainer.model.prototypes.weight[:K], dim=1)
    scores = [F.linear(z, prototypes.to(z.dtype)) for z in (Z, *pair)]
    codes = [
        sinkhorn(C, epsilon=epsilon_of(s), iterations=s.sinkhorn_iterations, alone=True)
        for C in scores[1:]
    ]
    loss = swapped_prediction_loss(scores[1:], codes, (0, 1), temperature=s.temperature)
    predictions = (scores[0] / s.temperature).softmax(dim=1)
    return {
        "effective_rank": effective_rank(h),
        "effective_rank_projected": effective_rank(Z),
        "feature_std": feature_std(h),
        "alignment": alignment(*pair),
        "uniformity": uniformity(Z),
        "loss_share": float(loss) / math.log(K),
        "code_entropy": float(code_entropy(codes[0])),
        "usage_entropy": usage_entropy(codes[0]),
        "information": mutual_information(predictions),
        "prototypes_in_use": prototypes_in_use(scores[0].argmax(dim=1), K),
        "duplicate_prototypes": duplicate_share(prototypes),
        "agreement": agreement(*codes),
    }


def _encode(
    trainer: "PretrainTrainer", cut: Cutter, count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(backbone features, projected unit features) of `count` images, one tensor per view."""
    parts = []
    for start in range(0, count, ROWS):
        views = cut(range(start, min(start + ROWS, count)))
        parts.append([_features(trainer, view) for view in views])
    by_view = [
        [torch.cat(same) for same in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)
    ]
    return [h for h, _ in by_view], [Z for _, Z in by_view]


def _features(trainer: "PretrainTrainer", view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model, place = trainer.model, trainer.place
    with autocast(place.device, place.precision):
        h = model.backbone(place.takes(view, model.prototypes.weight.dtype))
        return h, model.projected(h)[0]


def _knn_counts(
    sample: EvaluationSample, h: torch.Tensor, trainer: "PretrainTrainer"
) -> tuple[int, int]:
    """(correct, total) of k-NN on the backbone's features."""
    if not sample.asked:
        return 0, 0
    known = (sample.labels >= 0).nonzero().squeeze(1)
    features, labels = h.cpu()[known], sample.labels[known]
    k = neighbour_count(labels)
    if sample.queries is None or sample.ask is None:
        predicted, truth = leave_one_out(features, labels, k=k), labels
    else:
        truth = sample.queries
        (query_features,), _ = _encode(trainer, sample.ask, len(truth))
        predicted = knn_predict(features, labels, query_features.cpu(), k=k)
    return int((predicted == truth).sum()), len(truth)


def neighbour_count(labels: torch.Tensor) -> int:
    """Number of neighbours k: 20, at most half of the mean class size."""
    return max(1, min(20, len(labels) // (2 * len(torch.unique(labels)))))
