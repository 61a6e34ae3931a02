"""Discriminative learning rates: the further from the head, the smaller the steps."""

from collections.abc import Collection

from torch import nn

from unfreeze.backbones.stages import stages


def layer_scales(model: nn.Module, decay: float, head: Collection[str]) -> dict[str, float]:
    """Parameter -> share of the learning rate: 1 for `head`, `decay` for the last stage, and so on.

    Howard and Ruder, "Universal language model fine-tuning" (arXiv 1801.06146), section 3.2, by the
    stages that `summary` lists. Empty where `decay` is 1.
    """
    if decay == 1:
        return {}
    scales = {}
    for distance, stage in enumerate(reversed(stages(model)), 1):
        for name, _ in model.named_parameters():
            if stage.owns(name):
                scales[name] = decay**distance
    return scales | dict.fromkeys(head, 1.0)
