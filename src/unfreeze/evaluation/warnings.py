"""Warnings about a run, and merging those of several runs or steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unfreeze.runtime.console import printable

# codes of a model that is no better than chance
NO_LEARNING = frozenset(("nothing_learned", "one_class", "majority_accuracy"))
# codes about the dataset, independent of the model
DATASET_CODES = frozenset(
    (
        *("leakage", "few_validation_images", "cropped_away"),
        *("splits_look_like_classes", "labels_differ_by_case"),
    )
)


@dataclass(frozen=True)
class RunWarning:
    """A warning about a run: a stable code, and a message to display.

    Read as `x.code` or `x["code"]`.
    """

    code: str
    message: str

    def __str__(self) -> str:
        """The message."""
        return self.message

    def keys(self) -> tuple[str, ...]:
        """Field names, so that `dict(warning)` is the JSON object."""
        return "code", "message"

    def __getitem__(self, name: str) -> str:
        if name not in self.keys():
            raise KeyError(name)
        value: str = getattr(self, name)
        return value


def merge_latest(*several: Sequence[RunWarning]) -> list[RunWarning]:
    """All warnings in order; of each code only those of the last list that has it."""
    last = {warning.code: index for index, warnings in enumerate(several) for warning in warnings}
    return [
        warning
        for index, warnings in enumerate(several)
        for warning in warnings
        if last[warning.code] == index
    ]


def merge_over_runs(
    by_start: Mapping[str, Sequence[Sequence[RunWarning]]],
) -> list[RunWarning]:
    """Merge the warnings of several runs of several starts; each message names its start."""
    merged, dataset_codes = [], set()
    for name, runs in by_start.items():
        for code in dict.fromkeys(warning.code for run in runs for warning in run):
            same = [warning for run in runs for warning in run if warning.code == code]
            start = printable(name)
            if len(runs) > 1:
                start += f", {len(same)} of {len(runs)} runs"
            if code not in DATASET_CODES:
                merged.append(RunWarning(code, f"{start}: {same[0].message}"))
            elif code not in dataset_codes:  # the same for all starts
                merged.append(same[0])
                dataset_codes.add(code)
    return merged
