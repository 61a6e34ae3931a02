"""Export formats by name."""

import importlib

from unfreeze.errors import UsageError
from unfreeze.exports.target import Target
from unfreeze.settings.export import FORMATS


def target(name: str | None) -> Target:
    """The format of `--to`, imported on demand; UsageError for None."""
    if name is None:
        raise UsageError("export needs a format.", f"Add --to with one of: {', '.join(FORMATS)}.")
    module = importlib.import_module(f"unfreeze.exports.to_{name}")
    instance: Target = getattr(module, name.capitalize())()
    return instance
