"""Locks a run folder, so that only one process writes to it at a time.

Uses a lock of the OS (flock, via `filelock`), which is released when its process ends in any way
and works across machines on NFS. Some cluster file systems restrict such locks to one machine, so
the owner also touches a heartbeat file, which processes on other machines check.
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
LOCK_FILES = frozenset((LOCK, OWNER))
HEARTBEAT_SECONDS = 5.0  # seconds between heartbeats
_BEATS = 3  # missed heartbeats after which an owner on another machine counts as ended


@dataclass(frozen=True)
class LockOwner:
    """The process that uses a run folder."""

    host: str
    pid: int
    since: str

    @classmethod
    def here(cls) -> "LockOwner":
        """The current process as the owner."""
        return cls(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))

    @classmethod
    def of(cls, folder: Path) -> "LockOwner | None":
        """The owner recorded in the folder; None if there is none."""
        try:
            return cls(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class RunFolderLocks:
    """The run folders locked by a call, until the end of its `with` block."""

    def __init__(self) -> None:
        self._held: dict[str, _FolderLock] = {}

    def take(self, folder: str | Path) -> None:
        """Lock an existing folder; UsageError if another process uses it."""
        path = Path(os.path.realpath(folder))
        if str(path) not in self._held:
            self._held[str(path)] = _FolderLock(path, str(folder))

    def take_existing(self, folder: str | Path) -> None:
        """Lock a folder if it exists, to detect a conflict before any work."""
        if Path(folder).is_dir():
            self.take(folder)

    def __enter__(self) -> "RunFolderLocks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release all locks."""
        while self._held:
            self._held.popitem()[1].release()


@contextlib.contextmanager
def exclusive_access(file: Path, seconds: float = 60.0) -> Iterator[None]:
    """Within the block this process has exclusive access to `file`.

    OSError if another process keeps it for `seconds`, or the lock file cannot be written.
    """
    mark = file.with_name(f".{file.stem}.tmp")  # removed later if the process is killed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flock not supported", UserWarning)
        lock = filelock.FileLock(mark, timeout=seconds, thread_local=False)
        with lock:
            yield
            if not isinstance(lock, filelock.SoftFileLock):
                with contextlib.suppress(OSError):  # Windows keeps what is open
                    mark.unlink(missing_ok=True)


class _FolderLock:
    """A folder locked by this process."""

    def __init__(self, folder: Path, shown: str) -> None:
        self.folder = folder
        self.lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
        self.released = threading.Event()
        try:
            with warnings.catch_warnings():  # without flock, the file's existence is the lock
                warnings.filterwarnings("ignore", "flock not supported", UserWarning)
                self.lock.acquire()
        except filelock.Timeout:
            raise _in_use_error(
                folder, shown, isinstance(self.lock, filelock.SoftFileLock)
            ) from None
        try:
            previous = LockOwner.of(folder)
            if (
                previous
                and previous.host != socket.gethostname()
                and _has_heartbeat(folder / OWNER)
            ):
                raise _in_use_error(folder, shown, False)
            write_json(folder / OWNER, asdict(LockOwner.here()))
            threading.Thread(target=self._beat, daemon=True).start()
        except BaseException:
            self.lock.release()
            raise

    def release(self) -> None:
        """Release the lock and remove its files."""
        self.released.set()
        (self.folder / OWNER).unlink(missing_ok=True)
        if not isinstance(self.lock, filelock.SoftFileLock):
            with contextlib.suppress(OSError):  # Windows keeps what is open
                # before release: a process that has the file open sees that it was unlinked
                (self.folder / LOCK).unlink(missing_ok=True)
        self.lock.release()

    def _beat(self) -> None:
        while not self.released.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # the file server may be unavailable for a while
                os.utime(self.folder / OWNER)


def _has_heartbeat(owner: Path) -> bool:
    """Whether a heartbeat file's mtime changes while waiting; machines' clocks may differ."""
    first_mtime = _mtime(owner)
    until = time.monotonic() + _BEATS * HEARTBEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(HEARTBEAT_SECONDS / 5)
        if _mtime(owner) != first_mtime:
            return True
    return False


def _mtime(owner: Path) -> int | None:
    try:
        with owner.open("rb") as stream:  # NFS refreshes attributes when a file is opened
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return None


def _in_use_error(folder: Path, shown: str, soft_lock: bool) -> UsageError:
    owner = LockOwner.of(folder)
    user = "another process runs in it"
    if owner is not None:
        user = f"process {owner.pid} on {owner.host} has been running in it since {owner.since}"
    step = "Wait until it ends, or stop it, or name another --out."
    if soft_lock:  # without flock, it is unknown whether the process still exists
        step += f" If it no longer exists, delete {folder / LOCK}."
    return UsageError(f"{shown} is in use: {user}.", step)
