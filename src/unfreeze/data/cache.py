"""Where what is known of data, and what was fetched, is kept between runs."""

import os
from pathlib import Path

from unfreeze.text import given_path


def cache_folder() -> Path:
    """`UNFREEZE_CACHE`, else `unfreeze` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if own := os.environ.get("UNFREEZE_CACHE"):
        return Path(given_path(own))
    return Path(given_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "unfreeze"
