"""Messages between a worker process and its parent: pickles with out-of-band array buffers."""

import contextlib
import pickle
import struct
import sys
from typing import Any, NamedTuple

PIPE_BYTES = 2**20  # capacity of a pipe (Linux): fewer system calls per image
_HEAD = struct.Struct("<IH")  # bytes of the pickle, and how many buffers follow
_SIZE = struct.Struct("<Q")

Packed = list[bytes | memoryview]


class Message(NamedTuple):
    """A pickle and its buffers, not yet unpickled."""

    body: bytes
    buffers: list[bytearray]

    def opened(self) -> Any:
        """The unpickled object; its arrays are writable views of the buffers."""
        return pickle.loads(self.body, buffers=self.buffers)


def pack(value: Any) -> Packed:
    """Pickles an object without copying its arrays."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(len(part)) for part in raw)
    return [_HEAD.pack(len(body), len(raw)) + sizes + body, *raw]


def send(stream: Any, message: Packed) -> None:
    """Writes one message."""
    for part in message:
        stream.write(part)
    stream.flush()


def receive(stream: Any) -> Message | None:
    """Reads one message; None at the end of the stream."""
    try:
        length, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
        sizes = [_SIZE.unpack(_exactly(stream, _SIZE.size))[0] for _ in range(count)]
        body = bytes(_exactly(stream, length))
        return Message(body, [_exactly(stream, size) for size in sizes])
    except (OSError, ValueError, EOFError):
        return None


def widen(stream: Any) -> None:
    """Increases the capacity of a pipe (Linux only)."""
    if sys.platform.startswith("linux"):
        import fcntl

        with contextlib.suppress(OSError):  # above the limit of the system
            fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _exactly(stream: Any, count: int) -> bytearray:
    data = bytearray(count)
    if stream.readinto(data) < count:
        raise EOFError
    return data
