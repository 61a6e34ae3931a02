"""SwAV pretraining and transfer learning on your own pictures.

The verbs of the command line are functions here, with the same names for everything they take;
what they return has the fields of `--json`. Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from unfreeze import swav as swav
    from unfreeze.api.compare import compare as compare
    from unfreeze.api.demo import demo as demo
    from unfreeze.api.embed import embed as embed
    from unfreeze.api.evaluate import evaluate as evaluate
    from unfreeze.api.export import export as export
    from unfreeze.api.finetune import finetune as finetune
    from unfreeze.api.inspect import inspect as inspect
    from unfreeze.api.load import load as load
    from unfreeze.api.predict import predict as predict
    from unfreeze.api.pretrain import pretrain as pretrain
    from unfreeze.api.report import report as report
    from unfreeze.api.scan import scan as scan
    from unfreeze.api.show import show as show
    from unfreeze.api.summary import summary as summary

__version__ = "0.1.0"

wait_passively()  # OpenMP reads it when torch is loaded, which whoever imports this may do next

__all__ = [
    "DataError",
    "DivergedError",
    "Interrupted",
    "ResourceError",
    "UnfreezeError",
    "UsageError",
    "WeightsError",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "pretrain",
    "report",
    "scan",
    "show",
    "summary",
    "swav",
]


def __getattr__(name: str) -> Any:
    if name == "swav":
        return importlib.import_module("unfreeze.swav")
    if name not in __all__:
        raise AttributeError(f"module 'unfreeze' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unfreeze.api.{name}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
