"""Remote archives (`s3://…`, `https://…`), downloaded once into the cache with fsspec."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from unfreeze.data.cache.folder import RESERVED_BYTES, cache_folder, free_bytes
from unfreeze.errors import DataError, ResourceError, UnfreezeError, UsageError
from unfreeze.runtime import atomic
from unfreeze.runtime.console import Console, ProgressCallback

# fields of fsspec's `info` that identify the version of a file
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


def is_url(data: str) -> bool:
    """Whether `data` is a URL."""
    return "://" in data


def file_url_to_path(data: str) -> str:
    """The path of a `file://` URL; other names unchanged."""
    if not data.startswith("file://"):
        return data
    from urllib.request import url2pathname  # slow to import, rarely needed

    return url2pathname(urlsplit(data).path)


def without_query(address: str) -> str:
    """The address without its query, which can contain credentials."""
    return address.partition("?")[0]


def url_file_name(address: str) -> str:
    """The file name of an address."""
    protocol = address.partition("://")[0].lower()
    path = unquote(urlsplit(address).path) if protocol in ("http", "https") else address
    return path.rstrip("/").rpartition("/")[2]


def download(address: str, *, fetch: bool, console: Console) -> Path:
    """The local copy of the file at `address`, downloaded if it is new or has changed.

    DataError if it does not exist or cannot be downloaded, or if `fetch` is false and there is no
    local copy.
    """
    system, path = _file_system(address)
    info = _info(system, path, address)
    copy = _cache_path(address, info)
    if copy.exists():
        console.say(f"Using the cached copy of {without_query(address)} in {copy.parent}.")
        return copy
    if not fetch:
        raise DataError(
            f"{without_query(address)} is not in the cache, and a dry run downloads nothing.",
            "Run without --dry-run, or download it and give the local file.",
        )
    size = info.get("size")
    size = int(size) if isinstance(size, int) else None
    _require_space(address, size, copy)
    shown_size = "unknown size" if size is None else f"{size / _MEBIBYTE:,.1f} MiB"
    console.say(f"Downloading {without_query(address)} ({shown_size}) to {copy.parent}.")
    _download(system, path, address, copy, size, console)
    return copy


def _file_system(address: str) -> tuple[Any, str]:
    """(fsspec file system, path in it)."""
    protocol = address.partition("://")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = _EXTRAS.get(protocol.lower(), "remote")
        raise UsageError(
            f"{protocol}:// needs a package that is not installed: {' '.join(str(error).split())}.",
            f"Run pip install 'unfreeze[{extra}]', or install the package named in the message.",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{without_query(address)}: {' '.join(str(error).split())}.", "Check the address."
        ) from error
    return system, str(path)


def _info(system: Any, path: str, address: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = system.info(path)
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file at {without_query(address)}.", "Check the address."
        ) from error
    except Exception as error:  # file systems raise various errors
        raise _unreachable(address, error) from error
    if info.get("type") == "directory":
        raise DataError(
            f"{without_query(address)} is a folder.",
            "Pack it as a zip or tar, or download it (`aws s3 sync`) and give the local copy.",
        )
    return info


def _cache_path(address: str, info: dict[str, Any]) -> Path:
    version = {key: str(info[key]) for key in _VERSION if info.get(key) is not None}
    identity = json.dumps([address, version], sort_keys=True)
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / "fetched" / key / url_file_name(address)


def _require_space(address: str, size: int | None, copy: Path) -> None:
    free = free_bytes(copy.parent)
    if size is not None and size + RESERVED_BYTES > free:
        raise ResourceError(
            f"{without_query(address)} has {size / _MEBIBYTE:,.1f} MiB, but only "
            f"{max(0, free - RESERVED_BYTES) / _MEBIBYTE:,.1f} MiB can be used in {copy.parent}.",
            "Free disk space, or set UNFREEZE_CACHE to a folder on a larger disk.",
        )


def _download(
    system: Any, path: str, address: str, copy: Path, size: int | None, console: Console
) -> None:
    """Downloads the complete file, atomically."""
    total = max(1, (size or 0) // _MEBIBYTE)
    try:
        with (
            console.progress(f"downloading {copy.name}", total) as advance,
            atomic.replacing(copy) as partial,
        ):
            system.get_file(path, str(partial), callback=_progress_callback(advance))
            received = partial.stat().st_size
            if size is not None and received != size:
                raise DataError(
                    f"{without_query(address)} ended after {received:,} of {size:,} bytes.",
                    "Try again.",
                )
    except UnfreezeError:
        raise
    except Exception as error:  # as in `_info`
        raise _unreachable(address, error) from error


def _progress_callback(advance: ProgressCallback) -> Any:
    """An fsspec callback that reports progress in MiB."""
    from fsspec.callbacks import Callback

    class TransferProgress(Callback):  # type: ignore[misc]  # fsspec has no types
        shown = 0

        def call(self, *args: Any, **kwargs: Any) -> None:
            steps = int(self.value) // _MEBIBYTE - self.shown
            if steps > 0:
                self.shown += steps
                advance(steps)

    return TransferProgress()


def _unreachable(address: str, error: Exception) -> DataError:
    message = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{without_query(address)} cannot be downloaded ({type(error).__name__}): {message}.",
        "Check the network and the credentials, or download it and give the local file.",
    )
