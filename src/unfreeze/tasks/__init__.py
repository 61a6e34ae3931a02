"""What can be trained: the interfaces of a task, and the registry of all of them."""

from unfreeze.tasks.base import PretrainTask, TaskContext
from unfreeze.tasks.supervised import SupervisedTask

__all__ = ["PretrainTask", "SupervisedTask", "TaskContext"]
