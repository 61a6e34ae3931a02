"""Finds a pretraining method or a supervised task by name: built in, or of another package."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from unfreeze.config.finetune import (
    CLASSIFICATION,
    MULTILABEL,
    SEGMENTATION,
    TEXT_CLASSIFICATION,
)
from unfreeze.config.plugins import registered
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.sources.source import Source
from unfreeze.errors import UsageError
from unfreeze.tasks.base import PretrainTask
from unfreeze.tasks.supervised import SupervisedTask

BUILT_IN = {
    "swav": "unfreeze.swav.task:SwAVTask",
    "deepcluster-v2": "unfreeze.swav.deepcluster_v2:DeepClusterTask",
    "simclr": "unfreeze.tasks.simclr.task:SimCLRTask",
    "distill": "unfreeze.tasks.distillation.task:DistillTask",
}
SUPERVISED = {
    MULTILABEL: "unfreeze.tasks.multilabel.task:MultilabelTask",
    SEGMENTATION: "unfreeze.tasks.segmentation.task:SegmentationTask",
}


def pretrain_task(name: str) -> type[PretrainTask]:
    """The class of a method; UsageError if it cannot be imported or is no PretrainTask."""
    target = BUILT_IN.get(name) or registered("pretrain").get(name)
    if target is None:
        known = ", ".join([*BUILT_IN, *registered("pretrain")])
        raise UsageError(f"Unknown pretraining method {name!r}.", f"Choose from: {known}.")
    task: type[PretrainTask] = _imported(f"--method {name}", target, PretrainTask)
    return task


def task_of_data(name: str, source: Source) -> str:
    """The task of `--task`; `auto` is segmentation if masks lie beside the images."""
    if name != "auto":
        return name
    return SEGMENTATION if has_masks(source) else CLASSIFICATION


def supervised_task(name: str) -> SupervisedTask | None:
    """A new task of `--task`; None for classification.

    UsageError if it is not registered or cannot be imported.
    """
    if name in ("auto", CLASSIFICATION, TEXT_CLASSIFICATION):
        return None  # of texts too: only the samples differ
    target = SUPERVISED.get(name) or registered("finetune").get(name)
    if target is None:
        known = ", ".join(
            [CLASSIFICATION, TEXT_CLASSIFICATION, *SUPERVISED, *registered("finetune")]
        )
        raise UsageError(
            f"Unknown task {name!r}.",
            f"Choose from: {known}; or install the package that registers it.",
        )
    task: SupervisedTask = _imported(f"--task {name}", target, SupervisedTask)()
    task.name = name
    return task


def _imported(flag: str, target: str, kind: type) -> Any:
    """The subclass of `kind` at `module:class`."""
    module, _, attribute = target.partition(":")
    try:
        task = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{flag} cannot be loaded from {target}: {error}.",
            "Repair or uninstall the package that registers it.",
        ) from error
    if not (isinstance(task, type) and issubclass(task, kind)):
        raise UsageError(
            f"{flag} is {target}, which is no subclass of unfreeze.tasks.{kind.__name__}.",
            "Repair or uninstall the package that registers it.",
        )
    return task


def task_of_card(name: str, outputs: int, state: Mapping[str, Any]) -> SupervisedTask | None:
    """The task of a model card; None for classification."""
    task = supervised_task(name)
    if task is not None:
        task.outputs = outputs
        task.load_state_dict(state)
    return task
