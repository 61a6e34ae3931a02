"""`--unfreeze-at`: unfreeze or freeze parts of the network at given epochs."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.stages import stages
from unfreeze.transfer.freezing.freeze import FreezeSchedule, select_frozen

HOW = 'Use EPOCH:PART, as in "5:layer4,10:all"; -PART freezes again, epochs count from 0.'


def freeze_schedule(
    model: nn.Module, freeze: str, unfreeze_at: str | None, *, head: Collection[str], epochs: int
) -> FreezeSchedule:
    """Schedule of `--freeze` at epoch 0 and the changes of `--unfreeze-at`.

    A part is `all`, a stage as listed by `summary`, or the dotted name of a module or parameter.
    Raises UsageError with the valid choices.
    """
    names = frozenset(select_frozen(model, freeze, head=head))
    steps = [(0, names)]
    for epoch, part in _entries(unfreeze_at or ""):
        if epoch <= steps[-1][0] - (len(steps) > 1) or epoch >= epochs:
            raise UsageError(
                f"--unfreeze-at {epoch}:{part}: epochs must rise and stay below --epochs {epochs}.",
                HOW,
            )
        before = steps[-1][1]
        part_names = _parameters(model, part.removeprefix("-"))
        if part.startswith("-"):
            names = before | (part_names - _head_parameters(model, head))
        else:
            names = before - part_names
        if names == before:
            raise UsageError(
                f"--unfreeze-at {epoch}:{part} has no effect: that is already so.",
                "Leave it out, or freeze the part first with --freeze.",
            )
        if steps[-1][0] == epoch and len(steps) > 1:
            steps.pop()
        steps.append((epoch, names))
    return FreezeSchedule(tuple(steps))


def _entries(text: str) -> list[tuple[int, str]]:
    entries = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        epoch, colon, part = (word.strip() for word in entry.partition(":"))
        if not (colon and epoch.isdecimal() and int(epoch) and part.removeprefix("-")):
            raise UsageError(f"Invalid entry in --unfreeze-at: {entry!r}.", HOW)
        entries.append((int(epoch), part))
    return entries


def _parameters(model: nn.Module, part: str) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    if part == "all":
        return frozenset(names)
    all_stages = stages(model)
    for stage in all_stages:
        if part == stage.name:
            return frozenset(name for name in names if stage.owns(name))
    inside = frozenset(name for name in names if name == part or name.startswith(f"{part}."))
    if not inside:
        listed = ", ".join(stage.name for stage in all_stages)
        raise UsageError(
            f"--unfreeze-at: this network has no part {part!r}.",
            f"Use all, a stage ({listed}), or a module as listed by `unfreeze summary`.",
        )
    return inside


def _head_parameters(model: nn.Module, head: Collection[str]) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    return frozenset(n for n in names if any(n == h or n.startswith(f"{h}.") for h in head))


# cached tensor of a phase: the input of the head, or of the first trainable layer
FEATURES, ACTIVATIONS = "features", "activations"


@dataclass(frozen=True)
class FrozenPhase:
    """Epochs `first` to `last` (exclusive) with the parameters `frozen`.

    `kind`: FEATURES if only the head is trained, ACTIVATIONS if anything is frozen, else "".
    """

    first: int
    last: int
    frozen: frozenset[str]
    kind: str

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.last - self.first

    def views(self, count: int) -> list[int]:
        """Views out of `count` that the epochs use: epoch e uses view e modulo `count`."""
        return sorted({epoch % count for epoch in range(self.first, self.last)})


def frozen_phases(
    network: nn.Module, schedule: FreezeSchedule, epochs: int, head: Collection[str]
) -> list[FrozenPhase]:
    """Split `epochs` wherever the frozen parameters change; `head`: parameters of the new head."""
    names = {name for name, _ in network.named_parameters()}
    starts = [e for e in range(epochs) if e == 0 or schedule.at(e) != schedule.at(e - 1)]
    phases = []
    for first, last in zip(starts, [*starts[1:], epochs], strict=True):
        frozen = schedule.at(first)
        only_head = names - frozen <= set(head)
        kind = FEATURES if only_head and frozen else ACTIVATIONS if frozen else ""
        phases.append(FrozenPhase(first, last, frozen, kind))
    return phases


def is_cached(mode: str, phase: FrozenPhase) -> bool:
    """Whether `--cache MODE` caches anything in this phase."""
    return phase.kind == FEATURES or (mode == ACTIVATIONS and phase.kind == ACTIVATIONS)
