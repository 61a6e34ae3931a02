"""A warning about a run, and the warnings of several runs or steps together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unfreeze.runtime.console import told

# codes of a model that is no better than guessing
NO_LEARNING = frozenset(("nothing_learned", "one_class", "majority_accuracy"))
# codes that are about the images, whatever was trained on them
OF_DATA = frozenset(
    (
        *("leakage", "few_validation_images", "cropped_away"),
        *("splits_look_like_classes", "labels_differ_by_case"),
    )
)


@dataclass(frozen=True)
class RunWarning:
    """A warning about a run: a code that does not change, and a message for people.

    Read as `x.code` or `x["code"]`.
    """

    code: str
    message: str

    def __str__(self) -> str:
        """The message."""
        return self.message

    def keys(self) -> tuple[str, ...]:
        """The names, so that `dict(warning)` is what `--json` shows."""
        return "code", "message"

    def __getitem__(self, name: str) -> str:
        if name not in self.keys():
            raise KeyError(name)
        found: str = getattr(self, name)
        return found


def latest(*several: Sequence[RunWarning]) -> list[RunWarning]:
    """All of them; of one code those of the last list that has it."""
    codes = {one.code: place for place, some in enumerate(several) for one in some}
    return [one for place, some in enumerate(several) for one in some if codes[one.code] == place]


def over_runs(
    by_start: Mapping[str, Sequence[Sequence[RunWarning]]],
) -> list[RunWarning]:
    """The warnings of several runs of several starts as one list, each with whose it is."""
    found, said = [], set()
    for name, runs in by_start.items():
        for code in dict.fromkeys(one.code for run in runs for one in run):
            whose = [one for run in runs for one in run if one.code == code]
            who = f"{told(name)}, {len(whose)} of {len(runs)} runs" if len(runs) > 1 else told(name)
            if code not in OF_DATA:
                found.append(RunWarning(code, f"{who}: {whose[0].message}"))
            elif code not in said:  # the same for all
                found.append(whose[0])
                said.add(code)
    return found
