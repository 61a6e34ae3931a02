"""Names of an archive's members: those that would leave it are refused by name."""

import re
from collections.abc import Sequence

from unfreeze.errors import DataError

_DRIVE = re.compile(r"[A-Za-z]:")
# without any of these a name stays where it is, and is plain
_SUSPECT = ("\x00", ":", "..", "\n/", "\n./", "//", "/./")
BACKSLASHES = "Its names have backslashes, as Windows writes them: they are read as folders."


def slashed(name: str) -> str:
    """The name with folders as other archives have them: tools of Windows write backslashes."""
    return name.replace("\\", "/")


def refuse_slip(name: str, where: str) -> None:
    """Raises DataError for a name that is absolute, climbs, or names a drive."""
    name = slashed(name)
    if name.startswith("/") or "\x00" in name or _DRIVE.match(name) or ".." in name.split("/"):
        raise DataError(
            f"{where} holds a member named {name!r}, which points outside the archive.",
            "Pack the images again with plain relative names, or give the unpacked folder.",
        )


def plain(name: str) -> str:
    """The name without leading `./` and doubled separators."""
    if name.startswith("./") or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def plain_names(names: Sequence[str], where: str) -> list[str]:
    """Each name `plain`; DataError for the first that would leave the archive."""
    # all at once: next to no archive has any of these, and then nothing is left to do
    together = "\n" + "\n".join(names)
    if not any(part in together for part in _SUSPECT):
        return list(names)
    for name in names:
        refuse_slip(name, where)
    return [plain(name) for name in names]


def skipped_note(special: Sequence[str]) -> tuple[str, ...]:
    """The sentence about links, devices and the like, of which nothing is read."""
    if not special:
        return ()
    such = "link or device" if len(special) == 1 else "links or devices"
    return (f"{len(special):,} {such} in the archive not followed (the first: {special[0]}).",)


def last_of_each(names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Places of the members that count, in order, and a note where names occur twice.

    Of several members with one name the last counts, as it does for whoever unpacks.
    """
    if len(set(names)) == len(names):
        return list(range(len(names))), ()
    last = {name: place for place, name in enumerate(names)}
    twice = next(name for place, name in enumerate(names) if last[name] != place)
    note = (
        f"{len(names) - len(last):,} members are hidden by later ones of the same name, "
        f"as in unpacking (the first: {twice})."
    )
    return sorted(last.values()), (note,)
