"""The check of one file before training: whether it can be read and decoded."""

import numpy as np
import numpy.typing as npt

from unfreeze.data.decode import decode, reduced, shrink
from unfreeze.data.duplicates import Signature, signature
from unfreeze.data.examine import SIGNED
from unfreeze.data.sources import Source
from unfreeze.data.supervised import Lost
from unfreeze.data.undecodable import Undecodable
from unfreeze.data.verdicts import Verdict

Pixels = npt.NDArray[np.uint8]


class Judge:
    """`judge(row)` is (verdict, pixels if `keep` and usable); runs in worker processes.

    `sign`: verdicts of usable images include the perceptual hash.
    """

    def __init__(
        self, source: Source, resize_to: int | None, *, keep: bool, sign: bool = False
    ) -> None:
        self.source, self.resize_to, self.keep, self.sign = source, resize_to, keep, sign

    def __call__(self, row: int) -> tuple[Verdict, Pixels | None]:
        """Reads and decodes the file once; never raises for a damaged file."""
        data = None
        try:
            data = self.source.read(row)
            return self._check(data)
        except Undecodable as error:
            # a failure to read is about the disk or archive and may be temporary
            return Verdict(0, 0, error.reason, error.detail, passing=data is None), None
        except OSError as error:
            detail = error.strerror or str(error)
            return Verdict(0, 0, "unreadable", detail, passing=True), None
        except MemoryError:
            detail = f"out of memory while {'reading' if data is None else 'decoding'}"
            return Verdict(0, 0, "bomb", detail, passing=data is None), None

    def _check(self, data: bytes | Pixels) -> tuple[Verdict, Pixels | None]:
        if isinstance(data, bytes) and not self.keep:
            grey, size = reduced(data, self.source.intensity, SIGNED if self.sign else 1)
            return Verdict(size[0], size[1], signature=self._signature(grey)), None
        pixels = decode(data, self.source.intensity)
        kept_pixels = shrink(pixels, self.resize_to) if self.keep else None
        height, width = pixels.shape[:2]
        return Verdict(height, width, signature=self._signature(pixels)), kept_pixels

    def _signature(self, pixels: Pixels) -> Signature | None:
        return signature(pixels) if self.sign else None


def lost(failure: Lost) -> Verdict:
    """The verdict on a file whose worker process crashed or hung."""
    # if something else killed the process the file may be fine: check it again
    return Verdict(0, 0, failure.kind, failure.detail, passing=failure.outside)
