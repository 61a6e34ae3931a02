"""One process in a run's folder: the second one is refused while the first lives.

The lock is the system's own (flock, through `filelock`): it ends with its process, however that
ends, and on NFS it counts on every machine. Some cluster file systems keep such locks to one
machine; so whoever holds one also touches a file beside it, and a process on another machine looks
whether that goes on.
"""

import contextlib
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import filelock

from unfreeze.errors import UsageError
from unfreeze.runtime.atomic import write_json

LOCK, OWNER = ".lock", ".owner.json"
FILES = frozenset((LOCK, OWNER))
BEAT = 5.0  # seconds between two touches
_BEATS = 3  # without one, whoever held a folder on another machine is gone


@dataclass(frozen=True)
class Owner:
    """Who runs in a folder."""

    host: str
    pid: int
    since: str

    @classmethod
    def here(cls) -> "Owner":
        """As the owner, this process."""
        return cls(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))

    @classmethod
    def of(cls, folder: Path) -> "Owner | None":
        """Whoever wrote it down last and did not take it back; None where nobody did."""
        try:
            return cls(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class RunLocks:
    """The run folders that a call holds, until the end of its `with` block."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def take(self, folder: str | Path) -> None:
        """Hold a folder that is there; UsageError where another process does."""
        place = Path(os.path.realpath(folder))
        if str(place) not in self._held:
            self._held[str(place)] = _Held(place, str(folder))

    def take_existing(self, folder: str | Path) -> None:
        """Hold a folder if it is there: a run in it is met before any work is done."""
        if Path(folder).is_dir():
            self.take(folder)

    def __enter__(self) -> "RunLocks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let all of them go."""
        while self._held:
            self._held.popitem()[1].release()


@contextlib.contextmanager
def alone(file: Path, seconds: float = 60.0) -> Iterator[None]:
    """Within the block no other process is in one for the same `file`, which is read and written.

    OSError where another one stays that long, or nothing can be written there.
    """
    mark = file.with_name(f".{file.stem}.tmp")  # whatever a killed process leaves is swept up
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flock not supported", UserWarning)
        lock = filelock.FileLock(mark, timeout=seconds, thread_local=False)
        with lock:
            yield
            if not isinstance(lock, filelock.SoftFileLock):
                with contextlib.suppress(OSError):  # Windows keeps what is open
                    mark.unlink(missing_ok=True)


class _Held:
    """A folder that this process holds."""

    def __init__(self, folder: Path, spoken: str) -> None:
        self.folder = folder
        self.lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
        self.released = threading.Event()
        try:
            with warnings.catch_warnings():  # without flock a file that is there is the lock
                warnings.filterwarnings("ignore", "flock not supported", UserWarning)
                self.lock.acquire()
        except filelock.Timeout:
            raise _in_use(folder, spoken, isinstance(self.lock, filelock.SoftFileLock)) from None
        try:
            before = Owner.of(folder)
            if before and before.host != socket.gethostname() and _alive(folder / OWNER):
                raise _in_use(folder, spoken, False)
            write_json(folder / OWNER, asdict(Owner.here()))
            threading.Thread(target=self._beat, daemon=True).start()
        except BaseException:
            self.lock.release()
            raise

    def release(self) -> None:
        """Let it go, and leave no trace."""
        self.released.set()
        (self.folder / OWNER).unlink(missing_ok=True)
        if not isinstance(self.lock, filelock.SoftFileLock):
            with contextlib.suppress(OSError):  # Windows keeps what is open
                # while it is held: whoever opened it before sees that it has no name any more
                (self.folder / LOCK).unlink(missing_ok=True)
        self.lock.release()

    def _beat(self) -> None:
        while not self.released.wait(BEAT):
            with contextlib.suppress(OSError):  # a server that is away for a while
                os.utime(self.folder / OWNER)


def _alive(owner: Path) -> bool:
    """Whether a file is touched while one looks. Its own times count: clocks differ."""
    first = _touched(owner)
    until = time.monotonic() + _BEATS * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 5)
        if _touched(owner) != first:
            return True
    return False


def _touched(owner: Path) -> int | None:
    try:
        with owner.open("rb") as stream:  # NFS asks the server only when a file is opened
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return None


def _in_use(folder: Path, spoken: str, marker: bool) -> UsageError:
    owner = Owner.of(folder)
    who = "another process runs in it"
    if owner is not None:
        who = f"process {owner.pid} on {owner.host} has been running in it since {owner.since}"
    step = "Wait until it ends, or stop it, or name another --out."
    if marker:  # nothing tells whether a process on another machine still lives
        step += f" If it is long gone, delete {folder / LOCK}."
    return UsageError(f"{spoken} is in use: {who}.", step)
