"""The check of one file before training: whether it can be read and decoded."""

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.decode import decode, decode_reduced, resize_shorter_side
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.checks import SIGNATURE_SIDE
from unfreeze.data.validate.duplicates import Signature, signature
from unfreeze.data.validate.verdicts import FileVerdict
from unfreeze.data.validate.worker_pool import LostTask

Pixels = npt.NDArray[np.uint8]


class DecodeCheck:
    """`judge(row)` is (verdict, pixels if `keep` and usable); runs in worker processes.

    `sign`: verdicts of usable images include the perceptual hash.
    """

    def __init__(
        self, source: Source, resize_to: int | None, *, keep: bool, sign: bool = False
    ) -> None:
        self.source, self.resize_to, self.keep, self.sign = source, resize_to, keep, sign

    def __call__(self, row: int) -> tuple[FileVerdict, Pixels | None]:
        """Reads and decodes the file once; never raises for a damaged file."""
        data = None
        try:
            data = self.source.read(row)
            return self._check(data)
        except Undecodable as error:
            # a failure to read is about the disk or archive and may be temporary
            return FileVerdict(0, 0, error.reason, error.detail, passing=data is None), None
        except OSError as error:
            detail = error.strerror or str(error)
            return FileVerdict(0, 0, "unreadable", detail, passing=True), None
        except MemoryError:
            detail = f"out of memory while {'reading' if data is None else 'decoding'}"
            return FileVerdict(0, 0, "bomb", detail, passing=data is None), None

    def _check(self, data: bytes | Pixels) -> tuple[FileVerdict, Pixels | None]:
        if isinstance(data, bytes) and not self.keep:
            grey, size = decode_reduced(
                data, self.source.intensity, SIGNATURE_SIDE if self.sign else 1
            )
            return FileVerdict(size[0], size[1], signature=self._signature(grey)), None
        pixels = decode(data, self.source.intensity)
        kept_pixels = resize_shorter_side(pixels, self.resize_to) if self.keep else None
        height, width = pixels.shape[:2]
        return FileVerdict(height, width, signature=self._signature(pixels)), kept_pixels

    def _signature(self, pixels: Pixels) -> Signature | None:
        return signature(pixels) if self.sign else None


def lost_verdict(failure: LostTask) -> FileVerdict:
    """The verdict on a file whose worker process crashed or hung."""
    # if something else killed the process the file may be fine: check it again
    return FileVerdict(0, 0, failure.kind, failure.detail, passing=failure.outside)
