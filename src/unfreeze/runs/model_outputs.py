"""Outputs of the networks that `evaluate` compares, each image read once."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.config.commands import EvaluateSettings
from unfreeze.data.validate.duplicates import Signatures
from unfreeze.data.validate.warnings import CroppedImages
from unfreeze.evaluation.checks import FeatureStatistics
from unfreeze.evaluation.features import feature_meter
from unfreeze.runs.eval_split import EvaluationSet, Positions
from unfreeze.runs.inference import Signed, on_device, readers_of, run_inference
from unfreeze.runtime.console import Console
from unfreeze.transfer.known_images import KnownImages, LogitsAndFeatures
from unfreeze.transfer.predictor import Classifier, InferenceNetwork, ParallelNetworks


@dataclass(frozen=True)
class ModelOutputs:
    """Logits [N, C] of each network for the readable images; `kept`: their positions.

    `scores` [N]: out-of-distribution scores by the first network; None without known images.
    """

    logits: list[Tensor]
    scores: npt.NDArray[np.float64] | None
    kept: Positions
    signatures: Signatures
    features: FeatureStatistics | None  # of the first network
    cropped: CroppedImages | None


def model_outputs(
    s: EvaluateSettings,
    eval_set: EvaluationSet,
    positions: Positions,
    networks: list[Classifier],
    console: Console,
    known: KnownImages | str = "",
) -> ModelOutputs:
    """Read every image once and run each network on it."""
    index, first = eval_set.index.take(positions), networks[0]
    modules, keep = [n.network for n in networks], None
    logits_only = len(networks) * len(first.classes)
    if isinstance(known, KnownImages):
        # last: its logits are followed by its features
        modules = [*modules[1:], LogitsAndFeatures(first.network, first.head)]
        keep = partial(_with_scores, known=known, others=logits_only - len(first.classes))
    ensemble = InferenceNetwork(ParallelNetworks(modules), first.card, first.preprocess)
    ensemble = on_device(ensemble, s.device, s.precision)
    texts = index.source.noun == "text"  # compared by their content alone
    signed = Signed([] if texts else readers_of(index), len(index))
    with feature_meter(first.network, first.head) as meter:
        outputs = run_inference(
            ensemble,
            index.paths,
            readers_of(index) if texts else signed.reads,
            batch_size=s.batch_size,
            console=console,
            keep=keep,
        )
    values = list(outputs.values[:, :logits_only].chunk(len(networks), dim=1))
    scores = outputs.values[:, -1].double().numpy() if keep is not None else None
    return ModelOutputs(
        values[-1:] + values[:-1] if keep is not None else values,
        scores,
        outputs.kept,
        signed.signatures[outputs.kept],
        meter.statistics(),
        outputs.cropped,
    )


def _with_scores(
    outputs: Tensor, positions: list[int], *, known: KnownImages, others: int
) -> Tensor:
    """Logits of all networks and the score of the last; `others`: logits of the networks before."""
    return torch.cat([outputs[:, :others], known.scored(outputs[:, others:])], dim=1)
