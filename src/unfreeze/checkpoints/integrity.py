"""File integrity: checksums of zip archives, SHA-256 digests of tensors and files."""

import errno
import functools
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch


def archive_fault(path: Path) -> tuple[str, bool]:
    """(fault of a zip archive, whether its checksums were verified); "" for an intact archive.

    PyTorch can write archives without checksums (`set_crc32_options`): all of them are 0 then, and
    nothing can be verified.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.file_size]
            if members and not any(member.CRC for member in members):
                return "", False
            damaged = archive.testzip()
    except MemoryError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a damaged header leads to a seek before 0
            raise
        return _first_line(error), False
    except Exception as error:  # damaged headers make zipfile raise nearly anything
        return _first_line(error), False
    return (f"{damaged} has a different checksum" if damaged else ""), True


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, sorted by name."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def hash_in_name(path: Path) -> str:
    """The SHA-256, or its first digits, in a file's name; "" if the name contains none.

    Blobs in the Hugging Face cache are named by their hash; torchvision's published files end with
    the first digits of theirs.
    """
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    match = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    return match[1] if match and path.name in _published_files() else ""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def _published_files() -> frozenset[str]:
    """Names of the weights files of torchvision's classification networks."""
    from torchvision import models

    names = models.list_models(module=models)
    urls = [weights.url for name in names for weights in models.get_model_weights(name)]
    return frozenset(url.rpartition("/")[2] for url in urls)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
