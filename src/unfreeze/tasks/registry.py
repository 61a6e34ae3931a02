"""Finds a pretraining method by name: the built-in ones, and those that other packages register."""

from importlib import import_module

from unfreeze.config.plugins import registered
from unfreeze.errors import UsageError
from unfreeze.tasks.base import PretrainTask

BUILT_IN = {
    "swav": "unfreeze.swav.task:SwAVTask",
    "deepcluster-v2": "unfreeze.swav.deepcluster_v2:DeepClusterTask",
}


def pretrain_task(name: str) -> type[PretrainTask]:
    """The class of a method; UsageError if it cannot be imported or is no PretrainTask."""
    target = BUILT_IN.get(name) or registered("pretrain").get(name)
    if target is None:
        known = ", ".join([*BUILT_IN, *registered("pretrain")])
        raise UsageError(f"Unknown pretraining method {name!r}.", f"Choose from: {known}.")
    module, _, attribute = target.partition(":")
    try:
        task = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--method {name} cannot be loaded from {target}: {error}.",
            "Repair or uninstall the package that registers it.",
        ) from error
    if not (isinstance(task, type) and issubclass(task, PretrainTask)):
        raise UsageError(
            f"--method {name} is {target}, which is no subclass of unfreeze.tasks.PretrainTask.",
            "Repair or uninstall the package that registers it.",
        )
    return task
