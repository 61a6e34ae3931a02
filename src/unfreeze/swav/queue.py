"""The queue (paper, section 4.1): features of past batches that enlarge the batch for the codes."""

import torch
from torch import nn

from unfreeze.errors import UsageError


class FeatureQueue(nn.Module):
    """The last `length` features of each assigned view, newest first; part of the state dict.

    `length` is this process's share. Features have unit norm and no gradient. The queue is used
    only once it is full, so the zeros it starts with never enter the codes.
    """

    features: torch.Tensor  # [views, length, width]

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(views, length, width))
        self.length = length
        self.filled = 0  # on the host, so that no step waits for the device

    @property
    def full(self) -> bool:
        """Whether every row holds a feature."""
        return self.filled >= self.length > 0

    @torch.no_grad()
    def push(self, features: list[torch.Tensor]) -> None:
        """Insert `[B, width]` of each assigned view at the front and drop the oldest rows."""
        B = len(features[0])
        if self.length % B:
            raise UsageError(
                f"The queue length {self.length} is not a multiple of the batch size {B}.",
                f"Set --queue-length to a multiple of {B} per process.",
            )
        new = torch.stack(features).to(self.features)
        self.features = torch.cat([new, self.features[:, :-B]], dim=1)
        self.filled = min(self.length, self.filled + B)

    def get_extra_state(self) -> int:
        """The number of filled rows, saved in the state dict."""
        return self.filled

    def set_extra_state(self, state: int) -> None:
        """Restore `get_extra_state()`."""
        self.filled = int(state)
