"""Archives at an address (`s3://…`, `https://…`), fetched once into the cache through fsspec."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from unfreeze.data.cache import cache_folder
from unfreeze.data.room import SPARE_BYTES, free_bytes
from unfreeze.errors import DataError, ResourceError, UnfreezeError, UsageError
from unfreeze.runtime import atomic
from unfreeze.runtime.console import Advance, Console

# what file systems say by which one version of a file is told from another
_VERSION: tuple[str, ...] = (
    "size",
    "ETag",
    "etag",
    "Last-Modified",
    "LastModified",
    "mtime",
    "created",
    "updated",
)
_VERSION += ("md5Hash", "crc32c", "generation", "checksum", "sha256", "Content-MD5", "Digest")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_MEBIBYTE = 2**20


def is_address(data: str) -> bool:
    """Whether `data` names a place in the network, or anywhere else that has a protocol."""
    return "://" in data


def local(data: str) -> str:
    """The path that a `file://` address means; anything else as it is."""
    if not data.startswith("file://"):
        return data
    from urllib.request import url2pathname  # slow to import, seldom needed

    return url2pathname(urlsplit(data).path)


def spoken(address: str) -> str:
    """The address as it may be shown: what follows `?` may be a password."""
    return address.partition("?")[0]


def name_of(address: str) -> str:
    """The name of the file at an address."""
    protocol = address.partition("://")[0].lower()
    path = unquote(urlsplit(address).path) if protocol in ("http", "https") else address
    return path.rstrip("/").rpartition("/")[2]


def fetched(address: str, *, fetch: bool, console: Console) -> Path:
    """The copy on this machine's disk of the file at `address`.

    Another file at the same address is fetched anew. DataError where there is none, or it cannot
    be had; without `fetch` also where it is not here yet.
    """
    system, path = _opened(address)
    about = _about(system, path, address)
    here = _place(address, about)
    if here.exists():
        console.say(f"{spoken(address)} is in {here.parent} since an earlier run.")
        return here
    if not fetch:
        raise DataError(
            f"{spoken(address)} is not here yet, and a dry run fetches nothing.",
            "Run without --dry-run, or fetch it yourself and name the file.",
        )
    size = about.get("size")
    size = int(size) if isinstance(size, int) else None
    _refuse_no_room(address, size, here)
    told = "unknown size" if size is None else f"{size / _MEBIBYTE:,.1f} MiB"
    console.say(f"Fetching {spoken(address)} ({told}) into {here.parent}, once.")
    _fetch(system, path, address, here, size, console)
    return here


def _opened(address: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it)."""
    protocol = address.partition("://")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = _EXTRAS.get(protocol.lower(), "remote")
        raise UsageError(
            f"What {protocol}:// takes is not installed: {' '.join(str(error).split())}.",
            f"pip install 'unfreeze[{extra}]', or what the message names.",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{spoken(address)}: {' '.join(str(error).split())}.", "Check the address."
        ) from error
    return system, str(path)


def _about(system: Any, path: str, address: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = system.info(path)
    except FileNotFoundError as error:
        raise DataError(f"There is no file at {spoken(address)}.", "Check the address.") from error
    except Exception as error:  # every file system has errors of its own
        raise _unreachable(address, error) from error
    if about.get("type") == "directory":
        raise DataError(
            f"{spoken(address)} is a folder.",
            "Pack it as a zip or tar, or copy it here (as with `aws s3 sync`) and name the copy.",
        )
    return about


def _place(address: str, about: dict[str, Any]) -> Path:
    version = {key: str(about[key]) for key in _VERSION if about.get(key) is not None}
    told = json.dumps([address, version], sort_keys=True)
    key = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / "fetched" / key / name_of(address)


def _refuse_no_room(address: str, size: int | None, here: Path) -> None:
    free = free_bytes(here.parent)
    if size is not None and size + SPARE_BYTES > free:
        raise ResourceError(
            f"{spoken(address)} has {size / _MEBIBYTE:,.1f} MiB, and {here.parent} has room for "
            f"{max(0, free - SPARE_BYTES) / _MEBIBYTE:,.1f}.",
            "Free some space, or let UNFREEZE_CACHE name a larger disk.",
        )


def _fetch(
    system: Any, path: str, address: str, here: Path, size: int | None, console: Console
) -> None:
    """The whole file, or nothing at all."""
    total = max(1, (size or 0) // _MEBIBYTE)
    try:
        with (
            console.progress(f"fetching {here.name}", total) as advance,
            atomic.replacing(here) as place,
        ):
            system.get_file(path, str(place), callback=_meter(advance))
            got = place.stat().st_size
            if size is not None and got != size:
                raise DataError(
                    f"{spoken(address)} ended after {got:,} of {size:,} bytes.", "Try again."
                )
    except UnfreezeError:
        raise
    except Exception as error:  # as in `_about`
        raise _unreachable(address, error) from error


def _meter(advance: Advance) -> Any:
    """What fsspec tells of its progress, in MiB for the line."""
    from fsspec.callbacks import Callback

    class Meter(Callback):  # type: ignore[misc]  # fsspec has no types
        shown = 0

        def call(self, *args: Any, **kwargs: Any) -> None:
            steps = int(self.value) // _MEBIBYTE - self.shown
            if steps > 0:
                self.shown += steps
                advance(steps)

    return Meter()


def _unreachable(address: str, error: Exception) -> DataError:
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{spoken(address)} cannot be fetched ({type(error).__name__}): {said}.",
        "Check the network and the credentials, or fetch it yourself and name the file.",
    )
