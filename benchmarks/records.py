"""What the records of a finished run say about where its time went."""

from pathlib import Path
from typing import NamedTuple

from unfreeze.runtime.runfolder import read_metrics


class Spent(NamedTuple):
    """Steps, and the seconds that they waited for data and worked."""

    steps: int
    data: float
    step: float

    @property
    def waiting(self) -> float:
        """Share of the time that waits for data."""
        return self.data / (self.data + self.step)


def spent(run: str | Path, after: int) -> Spent:
    """Of the steps beyond step `after`; a record stands for the steps since the one before it."""
    before, steps, data, step = 0, 0, 0.0, 0.0
    for line in read_metrics(run):
        if line["split"] != "train":
            continue
        count, before = line["step"] - before, line["step"]
        if before - count >= after:
            steps += count
            data += count * line["seconds_data"]
            step += count * line["seconds_step"]
    return Spent(steps, data, step)
