"""Linear probe by logistic regression: cached features in, weights of the head out."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.api.fitting import Parts, before_training
from unfreeze.api.job import Job
from unfreeze.errors import DataError
from unfreeze.probes.logistic import LogisticRegression, Positions, fit_logistic
from unfreeze.runtime.console import Console
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.transfer.shortcut import Shortcut


@dataclass(frozen=True)
class SolvedHead:
    """The metrics of a training line, and the cached features that were used."""

    line: dict[str, float]
    shortcut: Shortcut


def solve_head(
    job: Job,
    parts: Parts,
    run: RunFolder,
    console: Console,
    deadline: Deadline,
    *,
    groups: Positions | None = None,
) -> tuple[Job, SolvedHead | None]:
    """Fit the head by logistic regression and copy it into the network.

    Returns the job, with the solver's choice in its model card, and the solution. `groups` [N]:
    images of one group stay in one fold of cross-validation. Raises Interrupted on a stop request.
    """
    s, result, began = job.plan.settings, None, time.monotonic()
    with before_training(job, parts, run, deadline) as should_stop:
        shortcut = parts.keeper.at(0, console, should_stop) if parts.keeper else None
        if shortcut is None:
            return job, None  # stopped: `before_training` raises Interrupted
        features_ready = time.monotonic()
        features, labels, images = _training_set(shortcut)
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

        solution = parts.processes.leads(fitted)
        if solution is not None:
            _copy_into_network(job, solution)
            job = _record(job, solution, run, console, len(images))
            times = {
                "seconds_data": features_ready - began,
                "seconds_step": time.monotonic() - features_ready,
            }
            rate = len(labels) / max(sum(times.values()), 1e-9)
            line = {**_metrics(solution, features, labels), "images_per_second": rate, **times}
            result = SolvedHead(line, shortcut)
    return job, result


def _training_set(shortcut: Shortcut) -> tuple[Tensor, Tensor, Positions]:
    """Features [V * N, D] and labels [V * N] of all views, view by view; positions [N]."""
    labels = shortcut.loader.dataset.labels
    views = [
        torch.cat(list(view_features.blocks(copied=False)))
        for view_features in shortcut.views.values()
    ]
    features = torch.cat([view.float() for view in views])
    return features, labels.repeat(len(views)).long(), np.arange(len(labels))


def _copy_into_network(job: Job, solution: LogisticRegression) -> None:
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
    job: Job, solution: LogisticRegression, run: RunFolder, console: Console, images: int
) -> Job:
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
