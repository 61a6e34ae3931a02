"""Features of a trained network: their statistics, and what is stored for `--unknown`."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import read_card
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.evaluation.conformal import Labels
from unfreeze.evaluation.features import FeatureMeter, pooled_inputs
from unfreeze.evaluation.out_of_distribution import ENERGY, KNN, MAHALANOBIS, ScoreChoice
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runs.finetuning.data import LabelledDataset
from unfreeze.runs.finetuning.setup import FinetuneJob
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.transfer.feature_cache.loader import CachedLoader, CachedView
from unfreeze.transfer.known_images import KnownImages, LogitsAndFeatures
from unfreeze.transfer.predictor import InferenceNetwork
from unfreeze.transfer.training_run import FinetuneTrainer
from unfreeze.transfer.validation import BATCH

FEATURE_SAMPLE = 256  # images that are measured if validation measured none
TRAINING_IMAGES = 2_000  # whose features are stored, at most
VALIDATION_IMAGES = 10_000  # whose logits are stored, at most


def write_known_images(
    job: FinetuneJob,
    dataset: LabelledDataset,
    cached: CachedLoader | None,
    run: RunFolder,
    console: Console,
) -> None:
    """Write the file beside the model and say what it holds; nothing without validation images.

    `cached`: features computed with the model's frozen weights; without them images are read again.
    """
    rng = np.random.default_rng(job.plan.settings.seed)
    # copies of training images would make the thresholds too narrow
    held = _sample(np.flatnonzero(~dataset.leaked), VALIDATION_IMAGES, rng)
    trained = _sample(np.arange(len(dataset.train)), TRAINING_IMAGES, rng)
    if not len(held) or not len(trained):
        return
    failed = "What the model needs for --unknown could not be written"
    with warn_on_failure(failed, run, console), torch.inference_mode():
        job.network.eval()
        known = _known_images(job, dataset, cached, held, trained)
        folder = run.file("model")
        known.save(folder, read_card(folder))
        console.say(_sentence(known, job.card.classes, "texts" if job.texts else "images"))


def _known_images(
    job: FinetuneJob,
    dataset: LabelledDataset,
    cached: CachedLoader | None,
    held: Labels,
    trained: Labels,
) -> KnownImages:
    use_cache = cached is not None and cached.split_point.learner is not None
    if use_cache and cached is not None and cached.held_out is not None:
        first = next(iter(cached.views.values()))
        val = torch.cat(list(_cached(job, cached, cached.held_out, held)))
        train = torch.cat(list(_cached(job, cached, first, trained)))
    else:
        val = torch.cat(list(_computed(job, dataset.val, held)))
        train = torch.cat(list(_computed(job, dataset.train, trained)))
    return KnownImages.of(
        val,
        dataset.val.index.labels[held].astype(np.int64),
        train[:, len(job.card.classes) :],
        dataset.train.index.labels[trained].astype(np.int64),
        dataset.keys["train"][trained],
        seed=job.plan.settings.seed,
    )


def _computed(job: FinetuneJob, images: ImageDataset, positions: Labels) -> Iterator[Tensor]:
    """Logits and features [B, C + D], batch by batch, as `predict` computes them."""
    both = LogitsAndFeatures(job.network, job.head)
    network = InferenceNetwork(both, job.card, job.plan.preprocess)
    reads = [partial(images.__getitem__, position) for position in positions.tolist()]
    yield from network.outputs(reads, batch_size=BATCH)


def _cached(
    job: FinetuneJob, cached: CachedLoader, view: CachedView, positions: Labels
) -> Iterator[Tensor]:
    """The same from cached features, which may be stored in a smaller type."""
    approach, learner = cached.split_point.approach, cached.split_point.learner
    layer, after = job.network.get_submodule(str(learner)), cached.after(job.network)
    for start in range(0, len(positions), BATCH):
        inputs = view.take(torch.from_numpy(positions[start : start + BATCH])).float()
        logits = after(inputs)
        features = pooled_inputs(layer, inputs if approach is None else approach(inputs))
        yield torch.cat([logits.float(), features.float()], dim=1).cpu()


def _sample(positions: Labels, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most `count` of the positions, in order."""
    return np.sort(rng.permutation(positions)[:count]).astype(np.int64)


def _sentence(known: KnownImages, classes: tuple[str, ...], samples: str) -> str:
    return (
        f"Unknown {samples}: {_reason(known.choice, classes, samples)}; sets of labels from "
        f"{len(known.labels):,} validation {samples} (`predict --unknown 0.95`)."
    )


def _reason(choice: ScoreChoice, classes: tuple[str, ...], samples: str) -> str:
    distance = f"distance to training {samples} (k {choice.k})"
    if not choice.auroc:
        return f"{distance}, since fewer than three classes can be left out"
    names = {
        KNN: distance,
        f"{KNN}+{MAHALANOBIS}": f"{distance} or to the classes (Mahalanobis)",
        f"{KNN}+{ENERGY}": f"{distance} or energy of the logits",
    }
    left = ", ".join(classes[label] for label in choice.left_out)
    others = ", ".join(f"{n} {v:.2f}" for n, v in choice.auroc.items() if n != choice.name)
    return (
        f"{names[choice.name]} (AUROC {choice.auroc[choice.name]:.2f} with one class left out: "
        f"{left}; {others})"
    )


def measure_features(
    meter: FeatureMeter,
    job: FinetuneJob,
    dataset: LabelledDataset,
    trainer: FinetuneTrainer,
    run: RunFolder,
    console: Console,
) -> None:
    """Measure features of some images if validation measured none."""
    if meter.images or (job.task is not None and job.task.dense):
        return
    failed = "The features could not be checked"
    with warn_on_failure(failed, run, console), torch.inference_mode():
        _feed_meter(meter, job, dataset, trainer)


def _feed_meter(
    meter: FeatureMeter, job: FinetuneJob, dataset: LabelledDataset, trainer: FinetuneTrainer
) -> None:
    cached = trainer.cached
    job.network.eval()
    if cached is not None and cached.split_point.learner is not None:
        view = cached.held_out or next(iter(cached.views.values()))
        activations = view.take(torch.from_numpy(_spread_positions(len(view))))
        approach = cached.split_point.approach  # None: the cache holds the head's input
        meter.take(activations if approach is None else approach(activations))
        return
    images = dataset.val if len(dataset.val) else dataset.train
    device, preprocess = next(job.network.parameters()).device, job.plan.preprocess
    positions = _spread_positions(len(images)).tolist()
    for start in range(0, len(positions), BATCH):
        some = [preprocess.pixels(images[p]) for p in positions[start : start + BATCH]]
        job.network(preprocess.model_input(preprocess.collate(some).to(device)))


def _spread_positions(count: int) -> np.ndarray:
    """At most FEATURE_SAMPLE positions, evenly spread, as images are often sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(FEATURE_SAMPLE, count)).astype(np.int64))
