"""What goes between a watched process and who leads it: pickles, with big arrays beside them."""

import contextlib
import pickle
import struct
import sys
from typing import Any, NamedTuple

PIPE_BYTES = 2**20  # what a pipe holds where that can be said: fewer turns for an image
_HEAD = struct.Struct("<IH")  # bytes of the pickle, and how many buffers follow
_SIZE = struct.Struct("<Q")

Packed = list[bytes | memoryview]


class Message(NamedTuple):
    """A pickle and the buffers that belong to it, not yet opened."""

    body: bytes
    buffers: list[bytearray]

    def opened(self) -> Any:
        """What was sent; arrays lie in the buffers and can be written to."""
        return pickle.loads(self.body, buffers=self.buffers)


def pack(thing: Any) -> Packed:
    """A message of `thing`; its arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(len(part)) for part in raw)
    return [_HEAD.pack(len(body), len(raw)) + sizes + body, *raw]


def send(stream: Any, message: Packed) -> None:
    """Writes one message."""
    for part in message:
        stream.write(part)
    stream.flush()


def receive(stream: Any) -> Message | None:
    """One message, None where the stream ended before it did."""
    try:
        length, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
        sizes = [_SIZE.unpack(_exactly(stream, _SIZE.size))[0] for _ in range(count)]
        body = bytes(_exactly(stream, length))
        return Message(body, [_exactly(stream, size) for size in sizes])
    except (OSError, ValueError, EOFError):
        return None


def widen(stream: Any) -> None:
    """Lets a pipe hold more than usual, where the system can (Linux)."""
    if sys.platform.startswith("linux"):
        import fcntl

        with contextlib.suppress(OSError):  # less is allowed here
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _exactly(stream: Any, count: int) -> bytearray:
    data = bytearray(count)
    if stream.readinto(data) < count:
        raise EOFError
    return data
