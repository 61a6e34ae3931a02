"""The error for files that cannot be decoded, with a fixed set of reasons."""

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
    """A file that cannot be decoded: `reason` is one of Reason, `detail` explains it.

    `empty`: no bytes. `not an image`: no known signature. `truncated`: the end is missing. `bomb`:
    exceeds the limit of pixels, bytes or memory. `channels`: unsupported channels, or a requested
    channel is missing. `unreadable`: any other error. `crashed`, `hung`: the decoder crashed or
    exceeded the time limit. `left out`: on an ignore list.
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
