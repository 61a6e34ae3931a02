"""Discriminative learning rates: the further from the head, the smaller the steps."""

from collections.abc import Collection

from torch import nn

from unfreeze.backbones.stages import stages


def layer_scales(
    model: nn.Module, decay: float, head: Collection[str], *, head_share: float = 1.0
) -> dict[str, float]:
    """Parameter -> share of the learning rate: `decay` for the last stage, and so on downwards.

    Howard and Ruder, "Universal language model fine-tuning" (arXiv 1801.06146), section 3.2, by the
    stages that `summary` lists. `head` has the share `head_share`. Empty where all have 1.
    """
    scales: dict[str, float] = {} if head_share == 1 else dict.fromkeys(head, head_share)
    if decay == 1:
        return scales
    for distance, stage in enumerate(reversed(stages(model)), 1):
        for name, _ in model.named_parameters():
            if stage.owns(name):
                scales[name] = decay**distance
    return scales | dict.fromkeys(head, head_share)
