"""Names of archive members; names that point outside the archive are refused."""

import re
from collections.abc import Sequence

from unfreeze.errors import DataError

_DRIVE = re.compile(r"[A-Za-z]:")
# names without any of these are safe and need no change
_SUSPECT = ("\x00", ":", "..", "\n/", "\n./", "//", "/./")
BACKSLASHES = "Backslashes in the names of the archive are read as folder separators."


def slashed(name: str) -> str:
    """The name with slashes instead of backslashes (some Windows tools write these)."""
    return name.replace("\\", "/")


def refuse_slip(name: str, where: str) -> None:
    """Raises DataError for names that are absolute, contain `..`, or name a drive."""
    name = slashed(name)
    if name.startswith("/") or "\x00" in name or _DRIVE.match(name) or ".." in name.split("/"):
        raise DataError(
            f"{where} contains a member named {name!r}, which points outside the archive.",
            "Pack the images again with relative names, or give the extracted folder.",
        )


def plain(name: str) -> str:
    """The name without `.` parts and repeated slashes."""
    if name.startswith("./") or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def plain_names(names: Sequence[str], where: str) -> list[str]:
    """`plain` names; DataError for the first that points outside the archive."""
    # one search in all names is fast, and hardly any archive contains these
    joined = "\n" + "\n".join(names)
    if not any(part in joined for part in _SUSPECT):
        return list(names)
    for name in names:
        refuse_slip(name, where)
    return [plain(name) for name in names]


def skipped_note(special: Sequence[str]) -> tuple[str, ...]:
    """The note about links, devices and other special members, which are skipped."""
    if not special:
        return ()
    noun = "link or device" if len(special) == 1 else "links or devices"
    return (f"{len(special):,} {noun} in the archive skipped (first: {special[0]}).",)


def last_of_each(names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Positions of the members to use, in order, and a note if names are repeated.

    Of members with the same name the last is used, as in extraction.
    """
    if len(set(names)) == len(names):
        return list(range(len(names))), ()
    last = {name: position for position, name in enumerate(names)}
    repeated = next(name for position, name in enumerate(names) if last[name] != position)
    note = (
        f"{len(names) - len(last):,} members are replaced by later ones of the same name, "
        f"as in extraction (first: {repeated})."
    )
    return sorted(last.values()), (note,)
