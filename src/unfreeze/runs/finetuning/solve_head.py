"""Linear probe by logistic regression: cached features in, weights of the head out."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.data.loading.loader import Loader
from unfreeze.errors import DataError, UnfreezeError
from unfreeze.evaluation.logistic_regression import LogisticRegression, Positions, fit_logistic
from unfreeze.runs.finetuning.build import TrainingParts, normalised_input, pre_training_phase
from unfreeze.runs.finetuning.setup import FinetuneJob
from unfreeze.runtime.console import Console
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.head_solver import pooled_input


@dataclass(frozen=True)
class SolvedHead:
    """The metrics of a training line, and the cached features that were used."""

    line: dict[str, float]
    cached: CachedLoader


def solve_head(
    job: FinetuneJob,
    parts: TrainingParts,
    run: RunFolder,
    console: Console,
    deadline: TimeLimit,
    *,
    groups: Positions | None = None,
) -> tuple[FinetuneJob, SolvedHead | None]:
    """Fit the head by logistic regression and copy it into the network.

    Returns the job, with the solver's choice in its model card, and the solution. `groups` [N]:
    images of one group stay in one fold of cross-validation. Raises Interrupted on a stop request.
    """
    s, result, began = job.plan.settings, None, time.monotonic()
    with pre_training_phase(job, parts, run, deadline) as should_stop:
        cached = parts.feature_cache.at(0, console, should_stop) if parts.feature_cache else None
        if cached is None:
            return job, None  # stopped: `pre_training_phase` raises Interrupted
        features_ready = time.monotonic()
        features, labels, images = _training_set(cached)
        if not bool(torch.isfinite(features).all()):
            raise DataError(
                "The features of the frozen backbone are NaN or infinite.",
                "Check the weights: `unfreeze inspect` lists tensors with NaN or infinite values.",
            )
        views = len(labels) // len(images)
        group_of = images if groups is None else groups[images]
        together = np.tile(group_of, views) if views > 1 or groups is not None else None

        def fitted() -> LogisticRegression | None:
            with console.progress("solving the head", 1):
                return fit_logistic(
                    features,
                    labels,
                    len(job.card.classes),
                    class_weights=parts.class_weights,
                    label_smoothing=s.label_smoothing,
                    groups=together,
                    seed=s.seed,
                    stop=should_stop,
                )

        solution = parts.processes.on_rank_zero(fitted)
        if solution is not None:
            _copy_into_network(job, solution)
            job = _record(job, solution, run, console, len(images))
            times = {
                "seconds_data": features_ready - began,
                "seconds_step": time.monotonic() - features_ready,
            }
            rate = len(labels) / max(sum(times.values()), 1e-9)
            line = {**_metrics(solution, features, labels), "images_per_second": rate, **times}
            result = SolvedHead(line, cached)
    return job, result


def _training_set(cached: CachedLoader) -> tuple[Tensor, Tensor, Positions]:
    """Features [V * N, D] and labels [V * N] of all views, view by view; positions [N]."""
    labels = cached.loader.dataset.targets
    views = [
        torch.cat(list(view_features.blocks(copied=False)))
        for view_features in cached.views.values()
    ]
    features = torch.cat([view.float() for view in views])
    return features, labels.repeat(len(views)).long(), np.arange(len(labels))


def _copy_into_network(job: FinetuneJob, solution: LogisticRegression) -> None:
    layer = job.network.get_submodule(job.head[0].rpartition(".")[0])
    with torch.no_grad():
        weight: Any = layer.weight
        bias: Any = layer.bias
        weight.copy_(solution.weight.reshape(weight.shape))
        if bias is not None:
            bias.copy_(solution.bias)


def _metrics(solution: LogisticRegression, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Training loss and accuracy of the solved head."""
    labels = labels.to(features.device)
    weight, bias = solution.weight.to(features.device), solution.bias.to(features.device)
    scores = functional.linear(features, weight, bias).double()
    correct = int((scores.argmax(1) == labels).sum())
    return {
        "loss": float(functional.cross_entropy(scores, labels)),
        "accuracy": correct / len(labels),
        "correct": correct,
        "total": len(labels),
    }


def _record(
    job: FinetuneJob, solution: LogisticRegression, run: RunFolder, console: Console, images: int
) -> FinetuneJob:
    """Log every candidate to metrics.jsonl; add the selected one to the card and the console."""
    for candidate in solution.candidates:
        figures = {
            "accuracy": candidate.accuracy,
            "loss": candidate.loss,
            "temperature": candidate.temperature,
        }
        base = {"step": 0, "epoch": 0, "split": "cross-validation"}
        run.metric(
            {**base, "scaling": candidate.scaling, "strength": candidate.strength, **figures}
        )
    chosen = solution.chosen
    head: dict[str, Any] = {
        "solver": "logistic regression",
        "scaling": solution.scaling,
        "strength": solution.strength,
        "folds": solution.folds,
        "cv_accuracy": chosen.accuracy if chosen else None,
        "cv_loss": chosen.loss if chosen else None,
    }
    if chosen is None:
        console.say(
            "Head solved by logistic regression, without cross-validation: a class has too few "
            "images."
        )
    else:
        how = f"{solution.folds}-fold cross-validation on {images:,} training images"
        console.say(
            f"Head solved by logistic regression: {solution.scaling} features, "
            f"C {solution.strength:g}, selected by {how}: "
            f"accuracy {chosen.accuracy:.3f}, loss {chosen.loss:.3f}."
        )
    return replace(job, card=replace(job.card, provenance={**job.card.provenance, "head": head}))


# Feature norm for which the default learning rates and initial weights were tuned: about that of
# ImageNet ResNets. Networks without normalisation reach 1,000, some contrastive ones have 1.
USUAL_NORM = 30.0
LARGEST_RAISE = 10.0  # maximum factor of the head's learning rate if other layers train too
IMAGES = 64


def scale_head(job: FinetuneJob, parts: TrainingParts) -> FinetuneJob:
    """The job with the head's initial weights and learning rate scaled by the feature norm.

    The gradient grows with the norm, the curvature with its square: a learning rate of 0.03 that
    suits features of norm 30 diverges at 300. A given learning rate is unchanged. AdamW's steps do
    not grow with the gradient: its rate scales with 1 / norm; LARS needs no change.
    """
    s, plan = job.plan.settings, job.plan
    if job.task is not None and job.task.dense:
        return job
    norm = parts.processes.on_rank_zero(lambda: feature_norm(job, parts.loader))
    if not norm:
        return job
    ratio = USUAL_NORM / norm
    _scale_classifier(job, min(1.0, ratio))
    if s.optimizer == "lars" or "lr" not in plan.reasons or s.head_lr is not None:
        return job
    factor = ratio if s.optimizer == "adamw" else ratio**2
    why = f"feature norm {norm:.3g} instead of the usual {USUAL_NORM:g}"
    if job.trains_head_alone:
        lr = float(f"{plan.lr * factor:.3g}")
        sweep = job.sweep and replace(
            job.sweep,
            trials=[replace(t, lr=float(f"{t.lr * factor:.3g}")) for t in job.sweep.trials],
        )
        reasons = {**plan.reasons, "lr": f"{plan.reasons['lr']}, x {factor:.3g}: {why}"}
        return replace(job, plan=replace(plan, settings=replace(s, lr=lr), reasons=reasons),
                       sweep=sweep)  # fmt: skip
    factor = min(factor, LARGEST_RAISE)
    if 0.5 < factor < 2:
        return job
    head_lr = float(f"{plan.lr * factor:.3g}")
    reasons = {**plan.reasons, "head_lr": f"x {factor:.3g} of --lr: {why}"}
    return replace(job, plan=replace(plan, settings=replace(s, head_lr=head_lr), reasons=reasons))


def feature_norm(job: FinetuneJob, loader: Loader) -> float:
    """Root mean square norm of the input of the first new layer, over some images; 0 for none."""
    network, layer = job.network, job.head[0].rpartition(".")[0]
    count = len(loader.positions)
    positions = loader.positions[np.unique(np.linspace(0, count - 1, IMAGES).astype(int))]
    batch = loader.dataset[0, 0, positions]
    if isinstance(batch, UnfreezeError):  # a file that can no longer be read
        raise batch
    training = network.training
    network.eval()
    images = batch.views[0].to(next(network.parameters()).device)
    with torch.inference_mode():
        features = pooled_input(network, layer, normalised_input(job.plan.preprocess, images))
    network.train(training)
    norm = float(features.float().flatten(1).square().sum(1).mean().sqrt())
    return norm if norm > 0 and norm < float("inf") else 0.0


def _scale_classifier(job: FinetuneJob, factor: float) -> None:
    """Multiply the classifier's initial weights by `times`: logits start near 0 at any norm."""
    if factor == 1.0:
        return
    parameters = dict(job.network.named_parameters())
    with torch.no_grad():
        parameters[next(n for n in reversed(job.head) if n.endswith("weight"))].mul_(factor)
