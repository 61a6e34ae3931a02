"""Whether a row of a source gives an image: what the check before training asks of each file."""

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
    """`judge(row)`: (verdict, pixels to `keep`, if any). What processes run.

    With `sign` the verdict on a usable image has its signature.
    """

    def __init__(
        self, source: Source, resize_to: int | None, *, keep: bool, sign: bool = False
    ) -> None:
        self.source, self.resize_to, self.keep, self.sign = source, resize_to, keep, sign

    def __call__(self, row: int) -> tuple[Verdict, Pixels | None]:
        """Reads and decodes once; a verdict whatever the file is."""
        data = None
        try:
            data = self.source.read(row)
            return self._seen(data)
        except Undecodable as error:
            # what reading found is about the disk or the archive, and may be mended
            return Verdict(0, 0, error.reason, error.detail, passing=data is None), None
        except OSError as error:
            detail = error.strerror or str(error)
            return Verdict(0, 0, "unreadable", detail, passing=True), None
        except MemoryError:
            detail = f"out of memory while {'reading' if data is None else 'decoding'}"
            return Verdict(0, 0, "bomb", detail, passing=data is None), None

    def _seen(self, data: bytes | Pixels) -> tuple[Verdict, Pixels | None]:
        if isinstance(data, bytes) and not self.keep:
            grey, size = reduced(data, self.source.intensity, SIGNED if self.sign else 1)
            return Verdict(size[0], size[1], signature=self._signature(grey)), None
        pixels = decode(data, self.source.intensity)
        held = shrink(pixels, self.resize_to) if self.keep else None
        height, width = pixels.shape[:2]
        return Verdict(height, width, signature=self._signature(pixels)), held

    def _signature(self, pixels: Pixels) -> Signature | None:
        return signature(pixels) if self.sign else None


def lost(found: Lost) -> Verdict:
    """The verdict on a file with which a process was lost."""
    # what another killed may be sound: a later run looks again
    return Verdict(0, 0, found.kind, found.detail, passing=found.outside)
