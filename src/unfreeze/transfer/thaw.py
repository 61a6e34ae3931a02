"""`--unfreeze-at`: parts that thaw, or freeze again, when their epoch has come."""

from collections.abc import Collection

from torch import nn

from unfreeze.backbones.stages import stages
from unfreeze.errors import UsageError
from unfreeze.transfer.freeze import FreezeSchedule, select_frozen

HOW = 'Use EPOCH:PART, as in "5:layer4,10:all"; -PART freezes again, epochs count from 0.'


def freeze_schedule(
    model: nn.Module, freeze: str, unfreeze_at: str | None, *, head: Collection[str], epochs: int
) -> FreezeSchedule:
    """`--freeze` at epoch 0, then what `--unfreeze-at` changes, entry by entry.

    A part is `all`, a stage as `summary` lists it, or a module or parameter by its dotted name.
    UsageError says what there is.
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
        meant = _meant(model, part.removeprefix("-"), head)
        names = before | (meant - _of(model, head)) if part.startswith("-") else before - meant
        if names == before:
            raise UsageError(
                f"--unfreeze-at {epoch}:{part} changes nothing: that is as it was.",
                "Leave it out, or give --freeze what shall stand still first.",
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
            raise UsageError(f"--unfreeze-at does not understand {entry!r}.", HOW)
        entries.append((int(epoch), part))
    return entries


def _meant(model: nn.Module, part: str, head: Collection[str]) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    if part == "all":
        return frozenset(names)
    found = stages(model)
    for stage in found:
        if part == stage.name:
            return frozenset(name for name in names if stage.owns(name))
    inside = frozenset(name for name in names if name == part or name.startswith(f"{part}."))
    if not inside:
        listed = ", ".join(stage.name for stage in found)
        raise UsageError(
            f"--unfreeze-at: this network has no part {part!r}.",
            f"Its stages are: {listed}. `unfreeze summary` lists every module.",
        )
    return inside


def _of(model: nn.Module, head: Collection[str]) -> frozenset[str]:
    names = [name for name, _ in model.named_parameters()]
    return frozenset(n for n in names if any(n == h or n.startswith(f"{h}.") for h in head))
