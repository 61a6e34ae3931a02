"""What a network computes, counted from shapes, and how fast this machine computes it."""

import copy
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unfreeze.backbones.trace import evaluating
from unfreeze.runtime.devices import autocast

_REPEATS = 3
_FEW, _SOME = 2, 8  # images of a first pass, and of one that is known to be cut off


@dataclass(frozen=True)
class Work:
    """Operations for one image: `forward` and `training` (forward and backward).

    `kept`: bytes in fp32 that the backward pass needs of it.
    """

    forward: float
    training: float
    kept: int


class Kept:
    """Adds up the storages that autograd keeps, each once; those of `known` tensors never."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.held: list[Any] = []  # so that no address is used twice
        self.bytes = 0

    def take(self, tensor: Tensor) -> Tensor:
        """Called by autograd for each tensor that it keeps."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def work_of(network: nn.Module, frozen: Collection[str], side: int) -> Work | None:
    """The work for images of `side` pixels while these parameters are frozen.

    Runs on the meta device: no arithmetic, no memory. None for a network that has to see numbers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    own = {
        name: p.detach().to("meta").requires_grad_(p.is_floating_point() and name not in frozen)
        for name, p in network.named_parameters()
    }
    buffers = {name: buffer.detach().to("meta") for name, buffer in network.named_buffers()}
    two = torch.zeros(2, 3, side, side, device="meta")
    kept = Kept((*own.values(), *buffers.values(), two))
    with torch.enable_grad(), evaluating(network), FlopCounterMode(display=False) as counter:
        try:
            with torch.autograd.graph.saved_tensors_hooks(kept.take, _as_it_is):
                output = functional_call(network, {**own, **buffers}, (two,))
            forward = counter.get_total_flops()
            if output.requires_grad:
                output.sum().backward()
        # a network says in its own way that it cannot be followed, or not at this size
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
            return None
    return Work(forward / 2, counter.get_total_flops() / 2, kept.bytes // 2)


def product_speed(seconds: float = 0.05) -> float:
    """Operations a second of a product of matrices on this CPU, as busy as it is now."""
    square, count = torch.ones(512, 512), 0
    square @ square  # the first one finds nothing in place
    began = time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        square @ square
        count += 1
    return 2 * 512**3 * count / max(time.perf_counter() - began, 1e-6)


@dataclass(frozen=True)
class Machine:
    """Where and how a network is computed."""

    device: torch.device
    precision: str


def measured_speed(
    network: nn.Module,
    frozen: Collection[str],
    side: int,
    *,
    rows: int,
    machine: Machine,
    training: bool = True,
    seconds: float = 1.0,
) -> float | None:
    """Operations a second of this network here, measured in about `seconds`; None if it fails.

    `rows`: images of a batch. Fewer are taken where they would take too long, and a pass that still
    does is cut off between two layers: what was computed by then counts. `network` and the random
    numbers stay as they are.
    """
    cuda = machine.device.type == "cuda"
    with torch.random.fork_rng(devices=[machine.device] if cuda else []):
        own = copy.deepcopy(network).to(machine.device)
        if machine.device.type in ("cpu", "cuda"):
            own = own.to(memory_format=torch.channels_last)
        for name, parameter in own.named_parameters():
            learns = training and name not in frozen and parameter.is_floating_point()
            parameter.requires_grad_(learns)
        still = {name for name, p in own.named_parameters() if not p.requires_grad}
        work = work_of(own, still, side)
        if work is None:
            return None
        own.train(training)
        return _Trial(own, side, machine, seconds).speed(max(1, rows), work.training)


class _Late(Exception):
    """A pass took too long."""


class _Trial:
    """Passes of a network over made-up images that end about `seconds` after the first began."""

    def __init__(self, network: nn.Module, side: int, machine: Machine, seconds: float) -> None:
        self.network, self.side, self.machine, self.seconds = network, side, machine, seconds
        self.until = time.perf_counter() + seconds / 2

    def speed(self, most: int, each: float) -> float | None:
        """Operations a second, with up to `most` images as time allows; `each` of an image."""
        rows = min(most, _FEW)
        try:
            _, whole = self._counted(rows)  # the first one finds nothing in place
            if not whole:
                self.until = time.perf_counter() + self.seconds / 2
                return self._counted(min(most, _SOME))[0]
            self.until = time.perf_counter() + self.seconds / 2
            spent = self._pass(rows)
            while rows < most and self._time_for(3 * spent):
                rows = min(most, 2 * rows)
                spent = self._pass(rows)
            spents = [spent]
            while len(spents) < _REPEATS and self._time_for(spent):
                spents.append(self._pass(rows))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        except (RuntimeError, TypeError, ValueError):  # not made for such images
            return None
        return each * rows * len(spents) / max(sum(spents), 1e-9)

    def _time_for(self, seconds: float) -> bool:
        return time.perf_counter() + seconds < self.until

    def _counted(self, rows: int) -> tuple[float, bool]:
        """Operations a second of a pass, and whether it went through or was cut off."""
        from torch.utils.flop_counter import FlopCounterMode

        began, whole = time.perf_counter(), True
        hooks: list[Any] = [m.register_forward_pre_hook(self._look) for m in self.network.modules()]
        for weight in self.network.parameters():
            if weight.requires_grad:
                hooks.append(weight.register_post_accumulate_grad_hook(self._look))  # type: ignore[no-untyped-call]
        try:
            with FlopCounterMode(display=False) as counter:
                self._pass(rows)
        except _Late:
            whole = False
            self.network.zero_grad(set_to_none=True)
        finally:
            for hook in hooks:
                hook.remove()
        operations: int = counter.get_total_flops()
        return operations / (time.perf_counter() - began), whole

    def _look(self, *_: Any) -> None:
        if time.perf_counter() > self.until:
            raise _Late

    def _pass(self, rows: int) -> float:
        device = self.machine.device
        images = torch.zeros(rows, 3, self.side, self.side, device=device)
        images = images.to(memory_format=torch.channels_last)
        began = time.perf_counter()
        learns = any(p.requires_grad for p in self.network.parameters())
        with torch.set_grad_enabled(learns), autocast(device, self.machine.precision):
            output = self.network(images)
        value = output.float().square().mean()
        if value.requires_grad:
            value.backward()
        value.item()  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.network.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
