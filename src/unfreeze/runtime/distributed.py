"""Data parallel processes of one run, started by torchrun or SLURM, via Lightning Fabric.

All methods are collective: every process calls them, in the same order. With one process they are
no-ops.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from unfreeze.errors import UnfreezeError, UsageError, error_from_exit_code
from unfreeze.runtime.launcher import LaunchInfo, detect_launcher

Result = TypeVar("Result")


class Distributed:
    """One process and its communication with the others of the run."""

    def __init__(self, launch: LaunchInfo | None = None, fabric: Any = None) -> None:
        self.launch = launch or LaunchInfo()
        self.rank, self.world = self.launch.rank, self.launch.world
        self.fabric = fabric
        # objects and flags use gloo on the CPU, so that they do not synchronise with the GPU
        self.cpu_group: Any = dist.new_group(backend="gloo") if self.world > 1 else None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is true in any process."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return [bool(vote) for vote in votes]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the processes of a tensor of equal shape."""
        return value if self.world == 1 else self.sum(value) / self.world

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over the processes of a tensor of equal shape."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self._group(total))
        return total

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place, with one all-reduce."""
        if self.world == 1 or not tensors:
            return
        total = self.sum(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = torch.split(total, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes by rank: plain values and CPU tensors."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes by rank."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group(tensor))
        return parts

    def _group(self, tensor: torch.Tensor) -> Any:
        return self.cpu_group if tensor.device.type == "cpu" else None

    def on_all_ranks(self, work: Callable[[], Result]) -> Result:
        """Run `work` on all processes; if any fails, all raise the error of the lowest rank."""
        return work() if self.world == 1 else self._settled(work)[0]

    def on_rank_zero(self, work: Callable[[], Result]) -> Result:
        """Run `work` on rank 0; the others wait and get its result or error."""
        if self.world == 1:
            return work()
        result: Result = self._settled(work if self.is_rank_zero else None)[1]
        return result

    def _settled(self, work: Callable[[], Any] | None) -> tuple[Any, Any]:
        """(own result, rank 0's result if the others have no `work`)."""
        result, error = None, None
        try:
            result = work() if work else None
        except Exception as caught:
            error = caught
        reports: list[Any] = [None] * self.world
        dist.all_gather_object(reports, (_error_record(error), work is None), group=self.cpu_group)
        failed = [rank for rank, (failure, _) in enumerate(reports) if failure]
        if failed:
            if error is not None and failed[0] == self.rank:
                error.spoken = False  # type: ignore[attr-defined]  # this process prints it
                raise error
            raise error_from_exit_code(*reports[failed[0]][0])
        from_first = [result if self.is_rank_zero else None]
        if any(idle for _, idle in reports):
            dist.broadcast_object_list(from_first, src=0, group=self.cpu_group)
        return result, from_first[0]

    def rank_zero_first(self, work: Callable[[], Result]) -> Result:
        """Run `work` on rank 0 first, then on the others, which can use the files it wrote."""
        done: list[Result] = []
        self.on_rank_zero(lambda: done.append(work()))
        return self.on_all_ranks(lambda: done[0] if done else work())

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model wrapped in DDP, which averages gradients; unchanged with one process."""
        if self.world == 1:
            return model
        with warnings.catch_warnings():
            # newer versions of torch renamed the argument, older ones lack the new name
            warnings.filterwarnings("ignore", ".*broadcast_buffers.* is deprecated", FutureWarning)
            wrapped: nn.Module = self.fabric.setup_module(model, move_to_device=False)
        return wrapped

    def no_sync_until_last(
        self, model: nn.Module, last: bool
    ) -> contextlib.AbstractContextManager[Any]:
        """Within the block gradients are accumulated without synchronising, unless `last`."""
        if self.world == 1 or last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.fabric.no_backward_sync(model)
        return context


def error_of_lost(processes: Distributed, lost: UnfreezeError | None) -> UnfreezeError:
    """The error of this process, which lost a file or a worker; in the others, one without output.

    Collective: every process calls it as soon as any of them lost something.
    """
    codes = [code for code in processes.gather_objects(lost.exit_code if lost else 0) if code]
    return lost or error_from_exit_code(codes[0], "Another process lost a file or a worker.", "")


def init_distributed(device: str) -> Distributed:
    """Join the processes of the launcher; `device` is auto, cpu or cuda.

    UsageError if the device does not support several processes, or a machine has too few GPUs.
    """
    launch = detect_launcher()
    if launch.world == 1:
        return Distributed()
    if device == "mps":
        raise UsageError(
            "--device mps supports one process only.",
            "Use --device cpu, or run without a launcher.",
        )
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    present = torch.cuda.device_count()
    if kind == "cuda" and present < launch.local_world:
        raise UsageError(
            f"{launch.local_world} processes on this machine, but {present} GPUs.",
            "Start one process per GPU (with srun use --gpus-per-node, so that each process sees "
            "all of them), or add --device cpu.",
        )
    return Distributed(launch, _fabric(launch, kind))


def _fabric(launch: LaunchInfo, kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning_fabric\.")
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy

        where = SLURMEnvironment() if launch.kind == "slurm" else TorchElasticEnvironment()
        fabric = Fabric(
            accelerator=kind,
            devices=launch.local_world,
            num_nodes=launch.nodes,
            # synchronised batch norm keeps buffers equal in all processes
            strategy=DDPStrategy(broadcast_buffers=False),
            plugins=[where],
        )
        fabric.launch()
    return fabric


def _error_record(error: Exception | None) -> tuple[int, str, str] | None:
    """(exit code, sentence, next step) of an error, to raise it in another process."""
    if isinstance(error, UnfreezeError):
        return error.exit_code, error.sentence, error.next_step
    return None if error is None else (1, f"{type(error).__name__}: {error}", "")
