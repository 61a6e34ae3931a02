"""What a pretraining plan depends on beside the settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What the plan depends on beside the settings."""

    images: int  # usable images to train on
    side: int  # median of their shorter sides, pixels
    device: str  # cpu, cuda or mps
    width: int = 512  # of the backbone's features
    processes: int = 1
    held: float | None = None  # bytes of the decoded images; inf: not decoded; None: estimated
    room: float = 2**31  # bytes of the device that images may take
