"""Dataset and hardware facts that a pretraining plan depends on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Dataset and hardware facts that the plan depends on besides the settings."""

    images: int  # usable training images
    side: int  # median of their shorter sides, in pixels
    device: str  # cpu, cuda or mps
    width: int = 512  # feature dimension of the backbone
    processes: int = 1
    held: float | None = None  # bytes of the decoded images; inf: not stored; None: estimate them
    room: float = 2**31  # bytes of device memory that images may use
