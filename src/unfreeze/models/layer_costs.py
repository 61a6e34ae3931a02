"""FLOPs of a network, counted from shapes, and the measured speed of this machine."""

import copy
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unfreeze.models.shape_trace import evaluation_mode, example_input
from unfreeze.runtime.device import autocast
from unfreeze.runtime.signals import signals_deferred

_REPEATS = 3
_WARM_UP_ROWS = 2  # images of the first pass
_PARTIAL_ROWS = 8  # images of a pass that will be interrupted
_SMALLEST = 64  # pixels of the images that stand for larger ones


@dataclass(frozen=True)
class NetworkCost:
    """FLOPs per image: `forward`, and `training` (forward and backward).

    `kept`: bytes of fp32 activations saved for the backward pass, per image.
    """

    forward: float
    training: float
    kept: int


class SavedTensorBytes:
    """Sums the bytes of storages saved by autograd, each once, without those of `known` tensors."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.held: list[Any] = []  # references, so that no address is reused
        self.bytes = 0

    def take(self, tensor: Tensor) -> Tensor:
        """The pack hook: called by autograd for each tensor that it saves."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def network_cost(network: nn.Module, frozen: Collection[str], side: int) -> NetworkCost | None:
    """FLOPs and activation memory for images of `side` pixels with these parameters frozen.

    Runs on the meta device, without computation or memory. None for a network that needs real
    values.
    """
    from torch.utils.flop_counter import FlopCounterMode

    parameters = {
        name: p.detach().to("meta").requires_grad_(p.is_floating_point() and name not in frozen)
        for name, p in network.named_parameters()
    }
    buffers = {name: buffer.detach().to("meta") for name, buffer in network.named_buffers()}
    images = example_input(network, (side, side), 2, device=torch.device("meta"))
    saved = SavedTensorBytes((*parameters.values(), *buffers.values(), images))
    with (
        signals_deferred(),
        torch.enable_grad(),
        evaluation_mode(network),
        FlopCounterMode(display=False) as counter,
    ):
        try:
            with torch.autograd.graph.saved_tensors_hooks(saved.take, _unpack):
                output = functional_call(network, {**parameters, **buffers}, (images,))
            forward = counter.get_total_flops()
            if output.requires_grad:
                output.sum().backward()
        # networks raise different errors where they cannot run on meta or at this size
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
            return None
    return NetworkCost(forward / 2, counter.get_total_flops() / 2, saved.bytes // 2)


def matmul_flops_per_second(seconds: float = 0.05) -> float:
    """FLOPs per second of a matrix product on this CPU, under its current load."""
    square, count = torch.ones(512, 512), 0
    square @ square  # warm-up
    start = time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        square @ square
        count += 1
    return 2 * 512**3 * count / max(time.perf_counter() - start, 1e-6)


@dataclass(frozen=True)
class ComputeDevice:
    """The device and precision of a computation."""

    device: torch.device
    precision: str


def network_flops_per_second(
    network: nn.Module,
    frozen: Collection[str],
    side: int,
    *,
    rows: int,
    machine: ComputeDevice,
    training: bool = True,
    seconds: float = 1.0,
) -> float | None:
    """FLOPs per second of this network here, measured for about `seconds` after a first pass.

    None if it fails.

    `rows`: batch size. Fewer and smaller images are used if they would take too long, because
    layers differ too much in speed for a part of a pass to stand for all of it. Only if the network
    takes no other size is a pass interrupted between two layers: the FLOPs up to there count.
    `network` and the random state are unchanged.
    """
    cuda = machine.device.type == "cuda"
    with torch.random.fork_rng(devices=[machine.device] if cuda else []):
        model = copy.deepcopy(network).to(machine.device)
        if machine.device.type in ("cpu", "cuda"):
            model = model.to(memory_format=torch.channels_last)
        for name, parameter in model.named_parameters():
            trainable = training and name not in frozen and parameter.is_floating_point()
            parameter.requires_grad_(trainable)
        frozen_names = {name for name, p in model.named_parameters() if not p.requires_grad}
        model.train(training)
        size, work = side, network_cost(model, frozen_names, side)
        if work is None:
            return None
        while work is not None and size:
            test = _SpeedTest(model, size, machine, seconds)
            speed = test.speed(max(1, rows), work.training)
            if speed is not None or (test.failed and size == side):
                return speed
            if test.failed:
                break  # smaller images are refused by what shapes alone do not show
            whole = work.training * max(1, min(rows, _WARM_UP_ROWS))
            size = _smaller(size, test.done / max(1.0, whole))
            work = network_cost(model, frozen_names, size) if size else None
        return _SpeedTest(model, side, machine, seconds).speed_of_a_part(max(1, rows))


def _smaller(side: int, share: float) -> int:
    """Pixels of images of which a pass takes as long as `share` of one of `side`; 0 for none.

    A multiple of 32, as most networks need; at least half of `side`, because a first pass is slower
    than later ones, and tiny images are no measure of large ones.
    """
    size = min(side - 32, max(side / 2, side * share**0.5)) // 32 * 32
    return int(size) if size >= _SMALLEST else 0


class _TimeUp(Exception):
    """The pass exceeded its time."""


class _SpeedTest:
    """Times passes of a network over zero images, for about `seconds` in total.

    `failed`: the network or the device cannot do it. `done`: FLOPs of a first pass that
    took too long.
    """

    def __init__(
        self, network: nn.Module, side: int, machine: ComputeDevice, seconds: float
    ) -> None:
        self.network, self.side, self.machine, self.seconds = network, side, machine, seconds
        # the first pass of a size is slow: it makes kernels and touches memory
        self.until = time.perf_counter() + seconds
        self.failed, self.done = False, 0

    def speed_of_a_part(self, max_rows: int) -> float | None:
        """FLOPs per second of a pass that is interrupted if it takes too long; None if it fails."""
        try:
            return self._timed_pass(min(max_rows, _PARTIAL_ROWS))[0]
        except (RuntimeError, TypeError, ValueError):
            return None

    def speed(self, max_rows: int, flops_per_image: float) -> float | None:
        """FLOPs per second with up to `max_rows` images; None if a first pass takes too long."""
        rows = min(max_rows, _WARM_UP_ROWS)
        try:
            _, complete = self._timed_pass(rows)  # warm-up
            if not complete:
                return None
            self.until = time.perf_counter() + self.seconds / 2
            seconds = self._pass(rows)
            while rows < max_rows and self._time_for(3 * seconds):
                rows = min(max_rows, 2 * rows)
                seconds = self._pass(rows)
            durations = [seconds]
            while len(durations) < _REPEATS and self._time_for(seconds):
                durations.append(self._pass(rows))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.failed = True
            return None
        except (RuntimeError, TypeError, ValueError):  # does not accept such images
            self.failed = True
            return None
        return flops_per_image * rows * len(durations) / max(sum(durations), 1e-9)

    def _time_for(self, seconds: float) -> bool:
        return time.perf_counter() + seconds < self.until

    def _timed_pass(self, rows: int) -> tuple[float, bool]:
        """(FLOPs per second of a pass, whether it completed before the time was up)."""
        from torch.utils.flop_counter import FlopCounterMode

        start, complete = time.perf_counter(), True
        hooks: list[Any] = [
            m.register_forward_pre_hook(self._check_time) for m in self.network.modules()
        ]
        for weight in self.network.parameters():
            if weight.requires_grad:
                hooks.append(weight.register_post_accumulate_grad_hook(self._check_time))  # type: ignore[no-untyped-call]
        try:
            with signals_deferred(), FlopCounterMode(display=False) as counter:
                self._pass(rows)
        except _TimeUp:
            complete = False
            self.network.zero_grad(set_to_none=True)
        finally:
            for hook in hooks:
                hook.remove()
        self.done = counter.get_total_flops()
        return self.done / (time.perf_counter() - start), complete

    def _check_time(self, *_: Any) -> None:
        if time.perf_counter() > self.until:
            raise _TimeUp

    def _pass(self, rows: int) -> float:
        device = self.machine.device
        images = example_input(self.network, (self.side, self.side), rows, device=device)
        if images.dim() == 4:
            images = images.to(memory_format=torch.channels_last)
        start = time.perf_counter()
        trainable = any(p.requires_grad for p in self.network.parameters())
        with torch.set_grad_enabled(trainable), autocast(device, self.machine.precision):
            output = self.network(images)
        value = output.float().square().mean()
        if value.requires_grad:
            value.backward()
        value.item()  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.network.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
