"""One self-contained HTML page about what `scan` found: each group with its thumbnails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfreeze.reports.dataset import Strip, shown
from unfreeze.reports.page import rendered

LISTED = 200  # files of one kind that are named on the page

# kind -> what is done about it
MEANING = {
    "empty": "There are no bytes.",
    "not an image": "No format's signature, whatever the name says.",
    "truncated": "The end is missing: a broken copy or download.",
    "bomb": "More pixels or bytes than are decoded at all.",
    "unreadable": "The decoder gave up.",
    "crashed": "The decoder brought its process down.",
    "hung": "The decoder did not end in time.",
    "left out": "Named in the list beside the archive.",
    "decoder warning": "Decoded, but the decoder complained: look at these.",
    "wrong extension": "The content is another format than the name says. Read by content.",
    "animated": "The first frame is used.",
    "CMYK": "Brought to RGB by plain inversion.",
    "16-bit": "Brought to 8 bits by a stated rule, never clipped to black.",
    "float": "Brought to 8 bits by a stated rule.",
    "alpha": "Put on white.",
    "palette": "Colours are looked up.",
    "grey": "One channel, repeated.",
    "rotated": "Turned upright by the EXIF note.",
    "extreme shape": "One side is five times the other or more.",
    "tiny": "Much smaller than the others.",
    "duplicate": "The same bytes again: they count twice.",
    "near-duplicate": "Looks the same: another size or another save of one picture.",
    "two labels": "One picture stands under two classes: one of them is wrong.",
    "across splits": "One picture is in two splits: what is measured on it is too good.",
}


@dataclass(frozen=True)
class Kind:
    """Files with one problem: `problems` as rows, `samples` some of them as pictures."""

    reason: str
    left_out: bool
    problems: Sequence[Mapping[str, Any]]
    samples: Strip


@dataclass(frozen=True)
class Visit:
    """Everything the page shows."""

    name: str
    figures: Sequence[tuple[str, str]]
    notes: Sequence[str]
    kinds: Sequence[Kind]
    twins: Sequence[Strip]
    more_twins: int


def clinic(visit: Visit) -> str:
    """The page's text; nothing in it refers to anything outside it."""
    kinds = [
        {
            "reason": kind.reason,
            "meaning": MEANING.get(kind.reason, ""),
            "left_out": kind.left_out,
            "count": len(kind.problems),
            "listed": kind.problems[:LISTED],
            "samples": shown(kind.samples),
        }
        for kind in visit.kinds
    ]
    twins = [shown(strip) for strip in visit.twins]
    return rendered("clinic.html", {"visit": visit, "kinds": kinds, "twins": twins})
