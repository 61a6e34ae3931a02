"""One self-contained HTML page with the results of `scan`: each problem with thumbnails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfreeze.reports.dataset import ImageRow, shown
from unfreeze.reports.page import render_template

LISTED = 200  # files listed per reason

# reason -> what it means or what is done about it
MEANING = {
    "empty": "The file has no bytes.",
    "not an image": "The content is not of any known image format, whatever the name says.",
    "truncated": "The end of the file is missing: an incomplete copy or download.",
    "bomb": "More pixels or bytes than are ever decoded: possibly a decompression bomb.",
    "unreadable": "The decoder failed.",
    "crashed": "The decoder crashed its process.",
    "hung": "The decoder did not finish in time.",
    "left out": "Excluded by the ignore list beside the archive.",
    "decoder warning": "Decoded with a warning: check these.",
    "wrong extension": "The content is of another format than the extension says. Read by content.",
    "animated": "The first frame is used.",
    "CMYK": "Converted to RGB by plain inversion.",
    "16-bit": "Converted to 8 bits by the rule of --range, never clipped to black.",
    "float": "Converted to 8 bits by the rule of --range.",
    "alpha": "Transparent parts become white.",
    "palette": "Converted to RGB by its palette.",
    "grey": "One channel, repeated three times.",
    "rotated": "Rotated upright according to EXIF.",
    "extreme shape": "One side is five times the other or more.",
    "tiny": "Much smaller than the others.",
    "duplicate": "Exact copies of another file: these images count more than once.",
    "near-duplicate": "Visually identical to another image: resized or saved again.",
    "two labels": "The same image under two labels: at least one of them is wrong.",
    "across splits": "The same image in two splits (data leakage): accuracy on it is too high.",
}


@dataclass(frozen=True)
class ProblemGroup:
    """Files with the same problem: rows of `problems`, and thumbnails of some."""

    reason: str
    left_out: bool
    problems: Sequence[Mapping[str, Any]]
    samples: ImageRow


@dataclass(frozen=True)
class ScanPage:
    """Contents of the page."""

    name: str
    lead: str
    figures: Sequence[tuple[str, str]]
    notes: Sequence[str]
    kinds: Sequence[ProblemGroup]
    twins: Sequence[ImageRow]
    more_twins: int


def clinic(content: ScanPage) -> str:
    """The HTML of the page, without references to other files."""
    kinds = [
        {
            "reason": kind.reason,
            "meaning": MEANING.get(kind.reason, ""),
            "left_out": kind.left_out,
            "count": len(kind.problems),
            "listed": kind.problems[:LISTED],
            "samples": shown(kind.samples),
        }
        for kind in content.kinds
    ]
    twins = [shown(strip) for strip in content.twins]
    return render_template("clinic.html", {"content": content, "kinds": kinds, "twins": twins})
