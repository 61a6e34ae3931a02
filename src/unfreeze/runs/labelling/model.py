"""What a model says of images to label: predictions, which are uncertain, which are alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.config.labelling import LabelSettings
from unfreeze.data.index.index import Index
from unfreeze.errors import UsageError
from unfreeze.evaluation.calibration import apply_temperature
from unfreeze.evaluation.label_selection import (
    clustering_space,
    clusters_of,
    margin_uncertainty,
    most_central_first,
)
from unfreeze.models.text import is_text_arch
from unfreeze.runs.inference import feature_network, on_device, readers_of, run_inference
from unfreeze.runs.labelling.label_server import Hint
from unfreeze.runtime.console import Console
from unfreeze.transfer.known_images import LogitsAndFeatures
from unfreeze.transfer.predictor import InferenceNetwork, load_classifier

GROUP = 48  # images of a group, which should fit a screen


@dataclass(frozen=True)
class Opinion:
    """By position in the index: `hints`, `uncertainty` (0..1), `groups` of images that are alike.

    Groups hold at most GROUP images: a cluster is split, the images farthest from its centre first.
    """

    hints: dict[int, Hint] = field(default_factory=dict)
    uncertainty: dict[int, float] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)


def network_with_features(
    run: str, arch: str | None, verb: str, console: Console
) -> tuple[InferenceNetwork, int]:
    """The network and its number of classes C; outputs are C logits, then features."""
    if model_folder(run) is not None:
        card = read_card(run)
        if is_text_arch(card.arch):
            raise UsageError(
                f"{run} is a model of texts, and {verb} is for images.",
                "Give a run, or weights, of images.",
            )
        if card.kind == "classifier" and len(card.classes) > 1:
            fine_tuned = load_classifier(run)
            both = LogitsAndFeatures(fine_tuned.network, fine_tuned.head)
            return InferenceNetwork(both, card, fine_tuned.preprocess), len(card.classes)
    return feature_network(run, arch, console), 0


def opinion(
    network: InferenceNetwork,
    classes: Sequence[str],
    index: Index,
    todo: npt.NDArray[np.int64],
    s: LabelSettings,
    console: Console,
) -> Opinion:
    """What the network of `network_with_features` says of the images `todo` of the index."""
    if not len(todo):
        return Opinion()
    part, count = index.take(todo), len(classes)
    outputs = run_inference(
        on_device(network, s.device, s.precision),
        part.paths,
        readers_of(part),
        batch_size=s.batch_size,
        console=console,
    )
    images = todo[outputs.kept]
    hints, uncertainty = dict[int, Hint](), dict[int, float]()
    if count:
        scores = apply_temperature(outputs.values[:, :count], network.card.temperature)
        shares = scores.softmax(dim=1).numpy()
        for image, row in zip(images.tolist(), shares, strict=True):
            best = int(row.argmax())
            hints[image] = (classes[best], float(row[best]))
        doubts = margin_uncertainty(shares).tolist()
        uncertainty = dict(zip(images.tolist(), doubts, strict=True))
    groups = list[list[int]]()
    if s.clusters is not None:
        features = outputs.values[:, count:].numpy()
        groups = [images[members].tolist() for members in groups_alike(features, s.clusters)]
    return Opinion(hints, uncertainty, groups)


def groups_alike(features: npt.NDArray[np.float32], count: int) -> list[npt.NDArray[np.int64]]:
    """Rows of [N, D] in groups of at most GROUP: k-means clusters, large ones first.

    Within a cluster what is farthest from its mean comes first: what does not belong is seen.
    """
    space = clustering_space(features)
    clusters = clusters_of(space, min(count, len(space)), seed=0)
    members = sorted(most_central_first(space, clusters), key=len, reverse=True)
    return [
        cluster[::-1][start : start + GROUP]
        for cluster in members
        for start in range(0, len(cluster), GROUP)
    ]
