"""The commands: their settings classes, functions and examples."""

import importlib
from collections.abc import Callable
from typing import Any

from unfreeze.config.shared import CallOptions

# command -> module and class of its settings; its function: `run_COMMAND` in commands/COMMAND.py
# or, if it is about the command line itself, in cli/COMMAND.py
SETTINGS = {
    "scan": ("commands", "ScanSettings"),
    "show": ("commands", "ShowSettings"),
    "audit": ("labelling", "AuditSettings"),
    "pretrain": ("pretrain", "PretrainSettings"),
    "finetune": ("finetune", "FinetuneSettings"),
    "compare": ("commands", "CompareSettings"),
    "evaluate": ("commands", "EvaluateSettings"),
    "predict": ("commands", "PredictSettings"),
    "embed": ("commands", "EmbedSettings"),
    "suggest": ("labelling", "SuggestSettings"),
    "label": ("labelling", "LabelSettings"),
    "inspect": ("commands", "InspectSettings"),
    "summary": ("commands", "SummarySettings"),
    "export": ("commands", "ExportSettings"),
    "report": ("commands", "ReportSettings"),
    "runs": ("commands", "RunsSettings"),
    "cache": ("commands", "CacheSettings"),
    "swav": ("main_swav", "ReferenceSettings"),
    "demo": ("commands", "DemoSettings"),
    "init": ("command_line", "InitSettings"),
    "completion": ("command_line", "CompletionSettings"),
}
ABOUT_THE_COMMAND_LINE = ("init", "completion")  # their functions are in cli/
# examples in a command's help, each without the leading `unfreeze`
EXAMPLES: dict[str, tuple[str, ...]] = {
    "scan": ("scan photos --out scan", "scan photos --quarantine broken"),
    "show": ("show photos", "show photos --run runs/pretrain"),
    "audit": ("audit photos --weights runs/pretrain --out audit",),
    "pretrain": (
        "pretrain photos --dry-run",
        "pretrain photos --out runs/pretrain",
        "pretrain photos --out runs/pretrain --resume",
    ),
    "finetune": (
        "finetune photos --weights runs/pretrain --freeze all --out runs/frozen",
        "finetune photos --labels labels.csv --weights imagenet --out runs/all-layers",
        "finetune photos --freeze all --unfreeze-at 5:layer4,10:all --out runs/staged",
    ),
    "compare": ("compare photos --weights none imagenet runs/pretrain --out runs/compared",),
    "evaluate": ("evaluate runs/frozen photos", "evaluate runs/frozen photos --split test --json"),
    "predict": (
        "predict runs/frozen new/*.jpg",
        "predict runs/frozen new --out predictions.csv",
    ),
    "embed": ("embed runs/pretrain photos --out features.npz",),
    "suggest": (
        "suggest runs/pretrain photos --budget 50 --out labels.csv",
        "suggest runs/frozen photos --labels labels.csv --budget 50 --out more.csv",
    ),
    "label": (
        "label photos --classes cat,dog --out labels.csv",
        "label photos --run runs/pretrain --clusters 50 --out labels.csv",
    ),
    "inspect": ("inspect checkpoint.pth",),
    "summary": ("summary resnet18 --freeze stage:2", "summary runs/frozen"),
    "export": (
        "export runs/frozen --to torchvision --out exported",
        "export runs/frozen --to onnx --with-preprocessing --out exported",
    ),
    "report": ("report runs/frozen",),
    "runs": ("runs runs",),
    "cache": ("cache", "cache --clear"),
    "swav": ("swav --data_path photos --epochs 100 --dump_path runs/swav",),
    "demo": ("demo", "demo --seeds 1 --out runs/demo"),
    "init": ("init", "init pretrain --out pretrain.toml"),
    "completion": ("completion bash", "completion zsh"),
}


def settings_class(verb: str) -> type[CallOptions]:
    """The settings class of a command."""
    module, name = SETTINGS[verb]
    cls: type[CallOptions] = getattr(importlib.import_module(f"unfreeze.config.{module}"), name)
    return cls


def description(verb: str) -> str:
    """The description of a command, in one sentence."""
    first = (settings_class(verb).__doc__ or "").strip().splitlines()[0]
    return first.split(". ")[0].rstrip(".") + "."


def command_function(verb: str) -> Callable[..., Any]:
    """The command's function `(settings, console) -> result`; imports its module."""
    package = "cli" if verb in ABOUT_THE_COMMAND_LINE else "commands"
    module = importlib.import_module(f"unfreeze.{package}.{verb}")
    function: Callable[..., Any] = getattr(module, f"run_{verb}")
    return function
