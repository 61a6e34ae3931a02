"""Scales the initial weights and learning rate of a new head by the norm of its input features."""

from dataclasses import replace

import numpy as np
import torch

from unfreeze.api.fitting import Parts, prepared
from unfreeze.api.job import Job
from unfreeze.data.loader import Loader
from unfreeze.errors import UnfreezeError
from unfreeze.transfer.head_solver import pooled_input

# Feature norm for which the default learning rates and initial weights were tuned: about that of
# ImageNet ResNets. Networks without normalisation reach 1,000, some contrastive ones have 1.
USUAL_NORM = 30.0
LARGEST_RAISE = 10.0  # maximum factor of the head's learning rate if other layers train too
IMAGES = 64


def fitted_to_features(job: Job, parts: Parts) -> Job:
    """The job with the head's initial weights and learning rate scaled by the feature norm.

    The gradient grows with the norm, the curvature with its square: a learning rate of 0.03 that
    suits features of norm 30 diverges at 300. A given learning rate is unchanged. AdamW's steps do
    not grow with the gradient: its rate scales with 1 / norm; LARS needs no change.
    """
    s, plan = job.plan.settings, job.plan
    norm = parts.processes.leads(lambda: feature_norm(job, parts.loader))
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


def feature_norm(job: Job, loader: Loader) -> float:
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
        features = pooled_input(network, layer, prepared(job.plan.preprocess, images))
    network.train(training)
    norm = float(features.float().flatten(1).square().sum(1).mean().sqrt())
    return norm if norm > 0 and norm < float("inf") else 0.0


def _scale_classifier(job: Job, factor: float) -> None:
    """Multiply the classifier's initial weights by `times`: logits start near 0 at any norm."""
    if factor == 1.0:
        return
    parameters = dict(job.network.named_parameters())
    with torch.no_grad():
        parameters[next(n for n in reversed(job.head) if n.endswith("weight"))].mul_(factor)
