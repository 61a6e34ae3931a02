"""Seeing whether it works: figures of the network on a fixed sample, now and then.

Looking changes nothing: no random number is drawn, no statistic kept, every module goes back to
its own mode. A run that is looked at equals, bit for bit, the one that is not.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from unfreeze.checkpoints.state import BEST, save_state
from unfreeze.probes.knn import knn_predict, leave_one_out
from unfreeze.runtime.devices import autocast
from unfreeze.swav.figures import (
    agreement,
    alignment,
    duplicates,
    effective_rank,
    in_use,
    sharpness,
    spread,
    told,
    uniformity,
    usage,
)
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.methods import epsilon_of
from unfreeze.swav.resumable import state_of
from unfreeze.swav.sinkhorn import sinkhorn

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer

ROWS = 256  # images through the network at once
# what chooses the best epoch where there are no labels: of all figures it follows k-NN most closely
# (rank correlation over the epochs of a run 0.51, of the effective rank 0.06: docs/LOG.md)
UNLABELLED = "information"
LOOKED = "figures"  # the split that records of these figures name
# uint8 [B, S, S, 3] of the images at these places: one tensor a view
Cutter = Callable[[Sequence[int]], list[torch.Tensor]]


@dataclass(frozen=True)
class Sample:
    """Images that stay the same over a run: `centres` of all, two random `views` of `pairs`.

    `labels` `[N]`, -1 where there is none. `queries` are labelled images of a validation split,
    of which `ask` gives the centre; without them each labelled image of the sample is told by
    the others.
    """

    centres: Cutter
    views: Cutter
    pairs: int
    labels: torch.Tensor
    queries: torch.Tensor | None = None
    ask: Cutter | None = None

    @property
    def asked(self) -> str:
        """Which images k-NN judges: `val`, `held-out`, or "" where it cannot."""
        known = self.labels[self.labels >= 0]
        if len(torch.unique(known)) < 2 or len(known) < 20:
            return ""
        return "held-out" if self.queries is None else "val"


@dataclass(frozen=True)
class Look:
    """What was seen after `epoch` epochs: figures without labels, and k-NN where there are some."""

    epoch: int
    step: int
    figures: dict[str, float]
    split: str = ""
    correct: int = 0
    total: int = 0

    @property
    def knn(self) -> float | None:
        """Share of the asked images whose class their neighbours know, 0..1."""
        return self.correct / self.total if self.total else None

    @property
    def score(self) -> float:
        """What the best epoch has most of: k-NN, without labels the information of predictions."""
        return self.figures[UNLABELLED] if self.knn is None else self.knn


class Watch:
    """Looks every `every` epochs, at the start and at the end; keeps the best beside the last."""

    def __init__(self, sample: Sample | None, every: int) -> None:
        self.sample, self.every = sample, every
        self.start: Look | None = None
        self.last: Look | None = None
        self.best: Look | None = None

    @property
    def said(self) -> str:
        """The progress line's part."""
        if self.last is None:
            return ""
        if self.last.knn is None:
            return f"information {100 * self.last.score:.1f} %"
        return f"k-NN {100 * self.last.knn:.1f} %"

    def due(self, epochs: int, total: int) -> bool:
        """Whether `epochs` finished ones of `total` call for a look."""
        return bool(self.every) and (epochs % self.every == 0 or epochs == total)

    def begin(self, trainer: "Trainer") -> None:
        """The look at the untrained start, which every later one is compared with."""
        if self.every and self.start is None and not trainer.step and trainer.plan.steps:
            self.start = self.look(trainer, 0)

    def after_step(self, trainer: "Trainer") -> Look | None:
        """Look, where the last step ended an epoch that calls for it; keep it if it is the best."""
        epochs, rest = divmod(trainer.step, trainer.plan.steps_per_epoch)
        if rest or not self.due(epochs, trainer.s.epochs or 0):
            return None
        with trainer.deadline.timing("look"):
            self.last = self.look(trainer, epochs)
        trainer.verdict = trainer.verdict or trainer.guard.look(trainer.step, self.last.figures)
        if self.best is None or self.last.score > self.best.score:
            self.best = self.last
            state = state_of(trainer)
            path = trainer.run.file(f"checkpoints/{BEST}")
            trainer.processes.leads(lambda: save_state(path, state))
        trainer.meter.skip()  # the next record's times are of training alone
        return self.last

    def look(self, trainer: "Trainer", epochs: int) -> Look:
        """The figures now; written, and the same in every process."""
        look = trainer.processes.leads(lambda: self._seen(trainer, epochs))
        for record in records(look):
            trainer.run.metric(record)
        return look

    def _seen(self, trainer: "Trainer", epochs: int) -> Look:
        sample = self.sample
        if sample is None:
            raise ValueError("only the first process looks, and it has the sample")
        with looking(trainer.model):
            (h,), (Z,) = _through(trainer, sample.centres, len(sample.labels))
            _, pair = _through(trainer, sample.views, sample.pairs)
            figures = figures_of(h, Z, pair, trainer)
            judged = _judged(sample, h, trainer)
        return Look(epochs, trainer.step, figures, sample.asked, *judged)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        looks = {"start": self.start, "last": self.last, "best": self.best}
        return {name: look and asdict(look) for name, look in looks.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        looks = {name: look and Look(**look) for name, look in state.items()}
        self.start, self.last, self.best = looks["start"], looks["last"], looks["best"]


def records(look: Look) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl for a look; epochs are counted from 0 there."""
    place = {"step": look.step, "epoch": max(0, look.epoch - 1)}
    figures = {name: float(f"{value:.6g}") for name, value in look.figures.items()}
    lines = [{**place, "split": LOOKED, **figures}]
    if look.knn is not None:
        counts = {"correct": look.correct, "total": look.total}
        lines.append({**place, "split": look.split, "knn_accuracy": look.knn, **counts})
    return lines


@contextlib.contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode and keeps no gradients."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def figures_of(
    h: torch.Tensor, Z: torch.Tensor, pair: list[torch.Tensor], trainer: "Trainer"
) -> dict[str, float]:
    """Every figure without labels.

    `h` `[N, width]` and `Z` `[N, d]` are the backbone's and the unit features of the centres,
    `pair` the unit features of two views.
    """
    s, K = trainer.s, trainer.s.nmb_prototypes or 1
    # of several clusterings the first one is looked at
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
        "feature_std": spread(h),
        "alignment": alignment(*pair),
        "uniformity": uniformity(Z),
        "loss_share": float(loss) / math.log(K),
        "code_entropy": float(sharpness(codes[0])),
        "usage_entropy": usage(codes[0]),
        "information": told(predictions),
        "prototypes_in_use": in_use(scores[0].argmax(dim=1), K),
        "duplicate_prototypes": duplicates(prototypes),
        "agreement": agreement(*codes),
    }


def _through(
    trainer: "Trainer", cut: Cutter, count: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Backbone features and unit features of `count` images: one tensor a view."""
    parts = []
    for start in range(0, count, ROWS):
        views = cut(range(start, min(start + ROWS, count)))
        parts.append([_features(trainer, view) for view in views])
    by_view = [
        [torch.cat(same) for same in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)
    ]
    return [h for h, _ in by_view], [Z for _, Z in by_view]


def _features(trainer: "Trainer", view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model, place = trainer.model, trainer.place
    with autocast(place.device, place.precision):
        h = model.backbone(place.takes(view, model.prototypes.weight.dtype))
        return h, model.projected(h)[0]


def _judged(sample: Sample, h: torch.Tensor, trainer: "Trainer") -> tuple[int, int]:
    """(correct, asked) of k-NN on the backbone's features."""
    if not sample.asked:
        return 0, 0
    known = (sample.labels >= 0).nonzero().squeeze(1)
    bank, labels = h.cpu()[known], sample.labels[known]
    k = neighbours(labels)
    if sample.queries is None or sample.ask is None:
        found, truth = leave_one_out(bank, labels, k=k), labels
    else:
        truth = sample.queries
        (asked,), _ = _through(trainer, sample.ask, len(truth))
        found = knn_predict(bank, labels, asked.cpu(), k=k)
    return int((found == truth).sum()), len(truth)


def neighbours(labels: torch.Tensor) -> int:
    """How many neighbours vote: 20, and half of an even share of each class at most."""
    return max(1, min(20, len(labels) // (2 * len(torch.unique(labels)))))
