"""What can be trained: the interface of a task, and the registry of all of them."""

from unfreeze.tasks.base import PretrainTask, TaskContext

__all__ = ["PretrainTask", "TaskContext"]
