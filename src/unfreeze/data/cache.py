"""Where what is known of data, and what was fetched, is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`UNFREEZE_CACHE`, else `unfreeze` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "unfreeze"
