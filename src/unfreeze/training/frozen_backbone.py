"""A backbone that stays as it is while a new head is trained."""

from torch import nn


class FrozenBackbone:
    """Keeps `backbone` as it is for the first `steps`: neither gradients nor statistics change it.

    In several processes gradients are computed and dropped, because DistributedDataParallel waits
    for those of all parameters that it began with; alone they are not computed at all.
    """

    def __init__(self, backbone: nn.Module, steps: int, *, alone: bool) -> None:
        self.backbone, self.steps, self.alone, self.frozen = backbone, steps, alone, False

    def begin_step(self, step: int) -> None:
        """Freeze or unfreeze the backbone before a step; batch norms use running statistics."""
        frozen = step < self.steps
        if frozen == self.frozen:
            return
        self.frozen = frozen
        self.backbone.train(not frozen)
        if self.alone:
            self.backbone.requires_grad_(not frozen)

    def drop_gradients(self) -> None:
        """Remove the gradients of a frozen backbone after the backward pass."""
        if self.frozen:
            for p in self.backbone.parameters():
                p.grad = None  # no step, no decay, no momentum
