"""Image sources with one interface: folders, archives, tables and built-in datasets."""

from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source

__all__ = ["Source", "open_source"]
