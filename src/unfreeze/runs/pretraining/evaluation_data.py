"""The images for feature evaluation of a pretraining run: of train, and of val if there is one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.augment.multicrop import make_crops
from unfreeze.data.index.index import VAL, Index
from unfreeze.data.index.splits import subset
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.validate.precheck import Mode, check_images
from unfreeze.reports.intervals import paired_difference
from unfreeze.runs.pretraining.data import UnlabelledDataset
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import view_specs
from unfreeze.swav.dataset_stats import evaluation_preprocess
from unfreeze.swav.evaluation_schedule import EvaluationSchedule
from unfreeze.tasks.base import TeacherFeatures
from unfreeze.training.feature_evaluation import (
    Cutter,
    EvaluationSample,
    FeatureEvaluation,
    FeatureEvaluator,
    knn_hits,
)

FeaturesOf = Callable[[Index], TeacherFeatures]  # of all images of an index
HELD = 2**28  # bytes of crops kept in memory; more are computed again at each evaluation
SHOWN = 2  # augmented views per image


def evaluation_sample(
    s: PretrainSettings,
    dataset: UnlabelledDataset,
    everything: Index,
    console: Console,
    features: FeaturesOf | None = None,
) -> EvaluationSample:
    """A seeded, stratified sample of the training images, and of val if there is one.

    `everything`: the index of all splits. The test set is not read. `features`: of a teacher.
    """
    sizes = list(zip(s.size_crops or (), s.nmb_crops or (), strict=True))
    pixels = sum(count * size**2 for size, count in sizes)
    side = evaluation_preprocess(s).image_size
    evaluations = EvaluationSchedule(
        len(dataset.train), s.epochs or 0, pixels, side, s.init != "none"
    )
    labels = dataset.index.labels
    chosen = _sample(labels, dataset.train, evaluations.sample, s.seed)
    centres = cached_views(
        _center_crops(s, dataset.images, chosen), len(chosen), _bytes_per_image(s)
    )
    pairs = np.random.default_rng(s.seed).permutation(chosen)[: max(2, len(chosen) // 2)]
    views = cached_views(_crops(s, dataset.images, pairs), len(pairs), _bytes_per_image(s) * SHOWN)
    train_labels = torch.from_numpy(labels[chosen]).long()
    val = everything.where(VAL)
    val = val[everything.labels[val] >= 0]
    if not len(val) or not (train_labels >= 0).any():
        sample = EvaluationSample(centres, views, len(pairs), train_labels)
        return _with_teacher(sample, dataset, chosen, features)
    val_images = _decoded(
        s, everything.take(_val_sample(everything, val, evaluations.sample, s.seed)), console
    )
    queries = torch.from_numpy(val_images.index.labels).long()
    val_views = cached_views(
        _center_crops(s, val_images, np.arange(len(val_images))),
        len(val_images),
        _bytes_per_image(s),
    )
    sample = EvaluationSample(centres, views, len(pairs), train_labels, queries, val_views)
    return _with_teacher(sample, dataset, chosen, features, val_images.index)


def _with_teacher(
    sample: EvaluationSample,
    dataset: UnlabelledDataset,
    chosen: np.ndarray,
    features: FeaturesOf | None,
    val: Index | None = None,
) -> EvaluationSample:
    """The sample with the teacher's k-NN accuracy on it, if it has labels."""
    if features is None or dataset.teacher is None or not sample.knn_split:
        return sample
    rows = torch.from_numpy(np.searchsorted(dataset.train, chosen))
    train, queries = torch.cat(list(dataset.teacher.parts))[rows], None
    if val is not None:
        queries = torch.cat(list(features(val).parts))
    hits = knn_hits(train, sample.labels, queries, sample.queries)
    return replace(sample, teacher=float(hits.float().mean()))


def kept_weights(s: PretrainSettings, evaluator: FeatureEvaluator | None) -> str:
    """The weights in model/: `last`, `best`, or `start` if that is the best checkpoint."""
    if s.keep != "best" or evaluator is None or evaluator.best is None:
        return "last"
    return "best" if evaluator.best.step else "start"


def evaluation_summary(
    evaluator: FeatureEvaluator | None, s: PretrainSettings, run: RunFolder
) -> dict[str, Any]:
    """The fields `figures`, `knn`, `best` and `continued` of a run's result."""
    if evaluator is None:
        return {"figures": {}, "knn": None, "best": None, "continued": None}
    last, best, knn = evaluator.last, evaluator.best, None
    if last is not None and last.knn is not None:
        knn = {
            "accuracy": last.knn,
            "correct": last.correct,
            "total": last.total,
            "split": last.split,
            "at_start": evaluator.start.knn if evaluator.start else None,
        }
        if evaluator.sample is not None and evaluator.sample.teacher is not None:
            knn["teacher"] = evaluator.sample.teacher
    return {
        "figures": last.figures if last else {},
        "knn": knn,
        "best": best
        and {
            "epoch": best.epoch,
            "figure": best.selects,
            "value": best.score,
            "checkpoint": str(run.file("checkpoints/best.ckpt")),
        },
        "continued": continued_summary(evaluator, s),
    }


def continued_summary(evaluator: FeatureEvaluator, s: PretrainSettings) -> dict[str, Any] | None:
    """The weights of `--init` beside those that are kept; None without `--init`.

    `start`, `value`: accuracy of a linear classifier on the features. `interval`: 95 %, of the
    difference of the kept weights to the start, paired by image; it does not count that they were
    selected on the same images. Without labels all values are None.
    """
    if s.init == "none" or evaluator.last is None or evaluator.start is None:
        return None
    kept, start = kept_weights(s, evaluator), evaluator.start
    chosen = evaluator.last if kept == "last" else evaluator.best
    summary = dict.fromkeys(("start", "value", "difference", "interval", "total", "split"))
    summary |= {"kept": kept, "stopped_below_start": 0 < (s.patience or 0) <= evaluator.below}
    if start.linear is None or chosen is None:
        return summary
    low, high = _difference_interval(chosen)
    return summary | {
        "start": start.linear,
        "value": chosen.linear,
        "difference": chosen.difference,
        "interval": (low, high),
        "total": chosen.total,
        "split": chosen.split,
        "last": {"value": evaluator.last.linear, "difference": evaluator.last.difference},
    }


def _difference_interval(chosen: FeatureEvaluation) -> tuple[float, float]:
    """95 % interval of the difference to the start (Bonett and Price 2012)."""
    counts = (chosen.gained, chosen.lost, chosen.total - chosen.gained - chosen.lost)
    now, before = (
        np.repeat(right, counts) for right in ([True, False, False], [False, True, False])
    )
    estimate = paired_difference([now], [before], chosen.total, shared=True)
    return estimate.low, estimate.high


def cached_views(make_views: Cutter, count: int, size: int) -> Cutter:
    """`cut`, with its output cached in memory if `count` images of `size` bytes fit."""
    if count * size > HELD:
        return make_views
    cached: list[torch.Tensor] = []

    def of(indices: Sequence[int]) -> list[torch.Tensor]:
        if not cached:
            cached.extend(make_views(range(count)))
        return [view[list(indices)] for view in cached]

    return of


def _sample(labels: np.ndarray, positions: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """A stratified sample; if few images have labels, these first: they are what k-NN needs."""
    known = positions[labels[positions] >= 0]
    if 0 < len(known) < len(positions):
        first = subset(labels, known, limit=limit, seed=seed)
        others = np.setdiff1d(positions, known)
        rest = subset(labels, others, limit=min(limit - len(first), len(others)), seed=seed)
        return np.sort(np.concatenate([first, rest]))
    return subset(labels, positions, limit=limit, seed=seed)


def _val_sample(index: Index, val: np.ndarray, limit: int, seed: int) -> np.ndarray:
    return subset(index.labels, val, limit=limit, seed=seed)


def _decoded(s: PretrainSettings, index: Index, console: Console) -> ImageDataset:
    mode: Mode = "full" if s.scan == "full" else "off"
    side = 2 * max(s.size_crops or ())
    return check_images(
        index, workers=s.workers, resize_to=side, console=console, mode=mode, refuse_above=None
    ).images()


def _bytes_per_image(s: PretrainSettings) -> int:
    return 3 * max(evaluation_preprocess(s).image_size, *(s.size_crops or ())) ** 2


def _center_crops(s: PretrainSettings, images: ImageDataset, positions: np.ndarray) -> Cutter:
    preprocess = evaluation_preprocess(s)

    def cut(indices: Sequence[int]) -> list[torch.Tensor]:
        centres = [preprocess.pixels(images[int(positions[index])]) for index in indices]
        return [torch.from_numpy(np.stack(centres))]

    return cut


def _crops(s: PretrainSettings, images: ImageDataset, positions: np.ndarray) -> Cutter:
    """The first two crops of the first epoch: the same at each evaluation."""
    specs = view_specs(s)[:SHOWN]

    def cut(indices: Sequence[int]) -> list[torch.Tensor]:
        ids = positions[list(indices)]
        pixels = [images[int(i)] for i in ids]
        return make_crops(pixels, ids, 0, s.seed, specs)

    return cut
