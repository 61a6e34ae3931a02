"""Time spent on data and on steps, from the metrics.jsonl of a finished run."""

from pathlib import Path
from typing import NamedTuple

from unfreeze.runtime.run_folder import read_metrics


class Spent(NamedTuple):
    """Steps, seconds spent waiting for data, and seconds spent on steps."""

    steps: int
    data: float
    step: float

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data."""
        return self.data / (self.data + self.step)


def spent(run: str | Path, after: int) -> Spent:
    """Time of the steps after step `after`; a record covers the steps since the previous one."""
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
