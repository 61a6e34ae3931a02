"""Why a file gives no image, in words from a fixed vocabulary."""

from typing import Literal

from unfreeze.errors import DataError

Reason = Literal[
    "empty",
    "not an image",
    "truncated",
    "bomb",
    "unreadable",
    "channels",
    "crashed",
    "hung",
    "left out",
]


class Undecodable(DataError):
    """Bytes that give no image: `reason` from the vocabulary, `detail` in the decoder's words.

    `empty`: no bytes. `not an image`: no known signature. `truncated`: the end is missing.
    `bomb`: more pixels, bytes or memory than are given at all. `channels`: more than can be read
    here, or without one that was asked for. `unreadable`: everything else. `crashed`, `hung`: a
    decoder ended its process, or did not end in time. `left out`: by a list.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(
            f"The image cannot be decoded ({reason}): {detail}.",
            "Replace or remove the file.",
        )
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Undecodable"], tuple[Reason, str]]:
        return Undecodable, (self.reason, self.detail)
