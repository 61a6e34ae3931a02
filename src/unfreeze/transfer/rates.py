"""Layer-wise learning rate decay: the further from the head, the lower the rate."""

from collections.abc import Collection

from torch import nn

from unfreeze.backbones.stages import stages


def layer_scales(
    model: nn.Module, decay: float, head: Collection[str], *, head_share: float = 1.0
) -> dict[str, float]:
    """Parameter -> factor on the learning rate: `decay` for the last stage, `decay`**2 below, ...

    Howard and Ruder, "Universal language model fine-tuning" (arXiv 1801.06146), section 3.2, with
    the stages listed by `summary`. `head` has the factor `head_share`. Empty if all factors are 1.
    """
    scales: dict[str, float] = {} if head_share == 1 else dict.fromkeys(head, head_share)
    if decay == 1:
        return scales
    for distance, stage in enumerate(reversed(stages(model)), 1):
        for name, _ in model.named_parameters():
            if stage.owns(name):
                scales[name] = decay**distance
    return scales | dict.fromkeys(head, head_share)
