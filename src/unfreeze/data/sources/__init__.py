"""Where images lie: a folder, an archive, a list or a built-in set, behind one face."""

from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source

__all__ = ["Source", "open_source"]
