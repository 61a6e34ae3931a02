"""The verbs of the command line: where their settings stand and which function does the work."""

import importlib
from collections.abc import Callable
from typing import Any

from unfreeze.settings.shared import Call

# verb -> module and class of its settings; the work is `unfreeze.api.VERB.run_VERB`
# (of `swav`, `unfreeze.api.reference.run_reference`: `unfreeze.swav` is the room of that name)
SETTINGS = {
    "scan": ("scan", "ScanSettings"),
    "show": ("use", "ShowSettings"),
    "pretrain": ("pretrain", "PretrainSettings"),
    "finetune": ("finetune", "FinetuneSettings"),
    "compare": ("compare", "CompareSettings"),
    "evaluate": ("use", "EvaluateSettings"),
    "predict": ("use", "PredictSettings"),
    "embed": ("use", "EmbedSettings"),
    "inspect": ("use", "InspectSettings"),
    "summary": ("use", "SummarySettings"),
    "export": ("export", "ExportSettings"),
    "report": ("use", "ReportSettings"),
    "swav": ("reference", "ReferenceSettings"),
    "demo": ("use", "DemoSettings"),
}
_WORK = {"swav": "reference"}


def settings_class(verb: str) -> type[Call]:
    """The class whose knobs are the verb's flags."""
    module, name = SETTINGS[verb]
    found: type[Call] = getattr(importlib.import_module(f"unfreeze.settings.{module}"), name)
    return found


def line(verb: str) -> str:
    """What the verb does, in one sentence."""
    first = (settings_class(verb).__doc__ or "").strip().splitlines()[0]
    return first.split(". ")[0].rstrip(".") + "."


def work(verb: str) -> Callable[..., Any]:
    """The function `(settings, console) -> result`; imports what the verb needs."""
    name = _WORK.get(verb, verb)
    module = importlib.import_module(f"unfreeze.api.{name}")
    found: Callable[..., Any] = getattr(module, f"run_{name}")
    return found
