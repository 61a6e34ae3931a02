"""A backbone that stays as it is while a new head is trained, or whose batch norms do."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBackbone:
    """Keeps `backbone` as it is for the first `steps`: neither gradients nor statistics change it.

    Afterwards it is trained; with `frozen_statistics` its batch norms still normalise by their
    running statistics, which stay as they are, and only their scale and shift are trained.
    In several processes gradients are computed and dropped, because DistributedDataParallel waits
    for those of all parameters that it began with; alone they are not computed at all.
    """

    def __init__(
        self, backbone: nn.Module, steps: int, *, frozen_statistics: bool, alone: bool
    ) -> None:
        self.backbone, self.steps, self.alone = backbone, steps, alone
        self.frozen_statistics, self.frozen = frozen_statistics, False
        self.began = False

    def begin_step(self, step: int) -> None:
        """Freeze or unfreeze the backbone before a step."""
        frozen = step < self.steps
        if not (self.steps or self.frozen_statistics):
            return  # nothing here changes how the method trains it
        if self.began and frozen == self.frozen:
            return
        self.frozen, self.began = frozen, True
        self.backbone.train(not frozen)
        if self.frozen_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if self.alone:
            self.backbone.requires_grad_(not frozen)

    def drop_gradients(self) -> None:
        """Remove the gradients of a frozen backbone after the backward pass."""
        if self.frozen:
            for p in self.backbone.parameters():
                p.grad = None  # no step, no decay, no momentum
