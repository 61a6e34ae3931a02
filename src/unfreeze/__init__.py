"""SwAV pretraining and transfer learning on your own images.

Each command of the command line is a function with the same parameter names; it returns an object
with the fields of `--json`. Importing this module is fast: torch is imported on first use. Types
are in `__init__.pyi`, which is generated from the settings.
"""

import importlib
import warnings
from typing import Any

from unfreeze.errors import (
    DataError,
    DivergedError,
    Interrupted,
    ResourceError,
    UnfreezeError,
    UsageError,
    WeightsError,
)
from unfreeze.runtime.threads import wait_passively

__version__ = "0.1.0"

wait_passively()  # sets environment variables that OpenMP reads when torch is loaded

__all__ = [
    "DataError",
    "DivergedError",
    "Interrupted",
    "ResourceError",
    "UnfreezeError",
    "UsageError",
    "WeightsError",
    "audit",
    "cache",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "label",
    "load",
    "predict",
    "pretrain",
    "report",
    "scan",
    "show",
    "suggest",
    "summary",
    "swav",
]


def __getattr__(name: str) -> Any:
    if name == "swav":
        return importlib.import_module("unfreeze.swav")
    if name not in __all__:
        raise AttributeError(f"module 'unfreeze' has no attribute {name!r}")
    module = "predict" if name == "load" else name
    with warnings.catch_warnings():
        # tqdm, which timm imports, advises in notebooks to install widgets; our bars need none
        warnings.filterwarnings("ignore", "IProgress not found")
        value = getattr(importlib.import_module(f"unfreeze.commands.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
