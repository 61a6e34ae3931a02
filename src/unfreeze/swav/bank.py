"""The bank (the paper's queue, section 4.1): past features that enlarge the batch for the codes."""

import torch
from torch import nn

from unfreeze.errors import UsageError


class Bank(nn.Module):
    """The last `length` features of each assigned view, newest first; part of the state dict.

    Lengths are this process's share. Features are normalised and carry no gradient. The bank
    serves only once it is full: what it was filled with at first never counts.
    """

    features: torch.Tensor  # [views, length, width]

    def __init__(self, views: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(views, length, width))
        self.length = length
        self.filled = 0  # known on the host, so no step waits for the device

    @property
    def full(self) -> bool:
        """Whether every row is a real feature."""
        return self.filled >= self.length > 0

    @torch.no_grad()
    def push(self, features: list[torch.Tensor]) -> None:
        """Put `[B, width]` for each assigned view at the front; the oldest leave."""
        B = len(features[0])
        if self.length % B:
            raise UsageError(
                f"A queue of {self.length} features is not a whole number of batches of {B}.",
                f"Set --queue-length to a multiple of {B} for each process.",
            )
        new = torch.stack(features).to(self.features)
        self.features = torch.cat([new, self.features[:, :-B]], dim=1)
        self.filled = min(self.length, self.filled + B)

    def get_extra_state(self) -> int:
        """How many rows are real: travels with the state dict."""
        return self.filled

    def set_extra_state(self, state: int) -> None:
        """The reverse of `get_extra_state`."""
        self.filled = int(state)
