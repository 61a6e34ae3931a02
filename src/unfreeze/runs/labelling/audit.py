"""What `audit` computes: out-of-fold probabilities of every image, and labels that look wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.checkpoints.model_file import TRAINED_IMAGES, ModelCard, model_folder, read_card
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.labelling import AuditSettings
from unfreeze.config.shared import label_arguments
from unfreeze.data.images.intensity import format_intensity
from unfreeze.data.index.class_stats import class_counts
from unfreeze.data.index.index import Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.loading.sample import sample_dataset
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.duplicates import (
    Groups,
    content_keys,
    load_trained_images,
    similar_images,
)
from unfreeze.errors import DataError, WeightsError
from unfreeze.evaluation.confident_learning import self_confidence, suspicious_labels
from unfreeze.evaluation.logistic_regression import Folds, Positions, out_of_fold_probabilities
from unfreeze.models.head import remove_head
from unfreeze.runs.eval_split import positions_of_split
from unfreeze.runs.finetuning.data import LabelledListing
from unfreeze.runs.finetuning.setup import set_up_model
from unfreeze.runs.inference import Signed, readers_of, run_inference
from unfreeze.runtime.console import Console
from unfreeze.transfer.predictor import InferenceNetwork
from unfreeze.transfer.train_val_split import (
    SplitOptions,
    TrainValSplit,
    cross_validation_folds,
    labelled_images,
    split_groups,
)

Probabilities = npt.NDArray[np.float64]
DUPLICATE, DISAGREES = "duplicate", "confident learning"  # reasons of a suspect


@dataclass(frozen=True)
class SuspectLabel:
    """An image, by position, whose label looks wrong; `suggested`: index of another class.

    `probability`: out-of-fold, of the suggested class. `score`: 0..1, one minus that of its label.
    `reason`: DUPLICATE (a copy has another label) or DISAGREES.
    """

    position: int
    suggested: int
    probability: float
    score: float
    reason: str


@dataclass(frozen=True)
class ImageFeatures:
    """The readable images `index`, their `features` float32 [N, D] and groups of near-duplicates.

    `left_out`: number of images that cannot be read.
    """

    index: Index
    features: torch.Tensor
    alike: Groups
    left_out: int


@dataclass(frozen=True)
class LabelAudit:
    """The audited images `index`, with out-of-fold `probabilities` [N, K] of its classes.

    `conflicts`: groups of copies of one image under two or more labels.
    """

    index: Index
    probabilities: Probabilities
    suspects: list[SuspectLabel]
    conflicts: Groups

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is their label."""
        return float((self.probabilities.argmax(axis=1) == self.index.labels).mean())


def labelled_by_path(s: AuditSettings, source: Source) -> Index:
    """The labelled images of all splits, by path: the order of a list changes nothing.

    DataError for data without classes, with one class, or with masks.
    """
    if has_masks(source):
        raise DataError(
            f"The labels of {source.where} are masks.",
            "audit is for classes; `unfreeze scan` checks masks.",
        )
    index = labelled_images(build_index(source, **label_arguments(s)), every_split=True)
    return index.take(np.array(sorted(range(len(index)), key=index.paths.__getitem__), np.int64))


def backbone_for(s: AuditSettings, index: Index, console: Console) -> InferenceNetwork:
    """The network of `finetune --freeze all` for these images, without its head.

    WeightsError for weights that were trained on labels of these images.
    """
    check_weights(s.weights, index)
    sample = sample_dataset(index, np.arange(len(index)), format_intensity(None, None))
    settings = FinetuneSettings(
        data=s.data,
        arch=s.arch,
        weights=s.weights,
        freeze="all",
        image_size=s.image_size,
        fit=s.fit,
    )
    setup = set_up_model(settings, LabelledListing(index, sample, "", class_counts(index)))
    for name in ("weights", "licence"):
        if text := setup.reasons.get(name):
            console.say(text)
    network, start = setup.start.network, setup.start
    remove_head(network)
    card = ModelCard("backbone", start.arch, start.stem, preprocess=setup.preprocess.as_dict())
    setup.preprocess.attach(index.source)
    return InferenceNetwork(network, card, setup.preprocess)


def check_weights(weights: str, index: Index) -> None:
    """WeightsError if the weights are a run whose backbone was trained on labels of these images.

    Its features repeat these labels, the wrong ones too.
    """
    folder = model_folder(weights)
    while folder is not None:
        card = read_card(folder)
        about = card.provenance
        if card.kind == "backbone":
            return  # pretraining uses no labels
        record = load_trained_images(folder / TRAINED_IMAGES)
        learned = about.get("freeze") != "all" or about.get("unfreeze_at") is not None
        if learned and record is not None:
            seen = int(np.isin(content_keys(index), record.train).sum())
            if seen:
                raise WeightsError(
                    f"{weights} was trained on {seen:,} of these images with their labels, so it "
                    "cannot judge them.",
                    "Use weights that have not seen these labels, such as a pretraining run.",
                )
        if learned:
            return
        start = str(about.get("weights", "")).rpartition(" (")[0]  # "RUN (arch)", of a frozen run
        folder = model_folder(start) if start else None


def compute_features(
    s: AuditSettings, labelled: Index, network: InferenceNetwork, console: Console
) -> ImageFeatures:
    """Features of the readable images of `--split`, in one pass.

    DataError if none can be read, or if a class has fewer images (or groups) than `--folds`.
    """
    index = labelled.take(positions_of_split(labelled, s.split))
    folds_of(s, index, [])  # refuse before the work, not after
    signed = Signed(readers_of(index))
    outputs = run_inference(
        network, index.paths, signed.reads, batch_size=s.batch_size, console=console
    )
    readable = index.take(outputs.kept)
    alike = similar_images(readable, np.arange(len(readable)), signed.signatures[outputs.kept])
    return ImageFeatures(readable, outputs.values, alike, len(index) - len(readable))


def audit_labels(s: AuditSettings, computed: ImageFeatures) -> LabelAudit:
    """Out-of-fold probabilities and suspects, from features; DataError as above."""
    index, labels = computed.index, computed.index.labels.astype(np.int64)
    folds, groups = folds_of(s, index, computed.alike)
    probabilities = out_of_fold_probabilities(
        computed.features, torch.from_numpy(labels), len(index.classes), folds, groups
    )
    conflicts = [group for group in computed.alike if len(np.unique(labels[group])) > 1]
    suspects = suspects_of(probabilities, labels, conflicts)
    return LabelAudit(index, probabilities, suspects, conflicts)


def folds_of(s: AuditSettings, index: Index, alike: Groups) -> tuple[Folds, Positions]:
    """((training, held-out) positions of each fold, group number of each image)."""
    everything = np.arange(len(index))
    whole = TrainValSplit(index, everything, everything[:0], "", alike)
    options = SplitOptions(s.seed, 0.0, group_by=s.group_by)
    folds = cross_validation_folds(whole, options, s.folds)
    names = split_groups(whole, everything, s.group_by) or everything.tolist()
    groups = np.unique([str(name) for name in names], return_inverse=True)[1]
    return [(fold.train, fold.val) for fold in folds], groups.astype(np.int64)


def suspects_of(
    probabilities: Probabilities, labels: Positions, conflicts: Groups
) -> list[SuspectLabel]:
    """Copies with another label than most of their copies, then the others; worst score first."""
    scores = 1 - self_confidence(probabilities, labels)
    suggested = {
        position: (int(probabilities[position].argmax()), DISAGREES)
        for position in suspicious_labels(probabilities, labels).tolist()
    }
    for group in conflicts:
        agreed = agreed_label(probabilities, labels, group)
        for position in group:
            if labels[position] != agreed:
                suggested[position] = agreed, DUPLICATE
            elif position in suggested and suggested[position][0] in labels[group]:
                del suggested[position]  # decided for its copies
    found = [
        SuspectLabel(
            position, other, float(probabilities[position, other]), float(scores[position]), reason
        )
        for position, (other, reason) in suggested.items()
    ]
    return sorted(found, key=lambda one: (one.reason != DUPLICATE, -one.score, one.position))


def agreed_label(probabilities: Probabilities, labels: Positions, group: Sequence[int]) -> int:
    """The label that most copies of an image have; of equally frequent ones the most probable."""
    counts = Counter[int](labels[group].tolist())
    total = probabilities[group].sum(axis=0)
    agreed: int = max(counts, key=lambda label: (counts[label], float(total[label])))
    return agreed
