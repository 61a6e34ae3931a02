"""Traces a forward pass on the meta device: order and output shape of each module."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unfreeze.errors import UsageError
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.signals import signals_deferred

Shape = tuple[int, ...]


@dataclass
class ForwardTrace:
    """The record of one image's forward pass.

    `order`: position of each module by name, in the order of first calls (0, 1, ...); `shapes`:
    the last output shape of each; `output`: the network's output; `parameters`: the copies it was
    computed from, still attached to the autograd graph of `output`.
    """

    order: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def reached(self, names: list[str]) -> bool:
        """Whether the output depends on every one of these parameters."""
        parameters = [self.parameters[name] for name in names]
        if not parameters or not self.output.requires_grad:
            return not parameters
        with isolated():
            gradients = torch.autograd.grad(self.output.sum(), parameters, allow_unused=True)
        return all(gradient is not None for gradient in gradients)


def example_input(
    model: nn.Module,
    size: tuple[int, int],
    count: int,
    *,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An input of `count` samples: images [count, 3, *size] of zeros, or random by `generator`.

    Networks for other samples make their own (`example_input(count, device)`).
    """
    make = getattr(model, "example_input", None)
    if make is not None:
        sample: Tensor = make(count, device)
        return sample
    if generator is None:
        return torch.zeros(count, 3, *size, device=device)
    return torch.randn(count, 3, *size, generator=generator).to(device)


def input_size(model: nn.Module) -> int:
    """Side in pixels of the images a network was designed for, as declared; else 224."""
    declared = getattr(model, "default_cfg", None)
    if declared:
        return int(declared["input_size"][-1])
    side = getattr(model, "image_size", None)
    return side if isinstance(side, int) else 224


@isolated()
def trace_forward(model: nn.Module, size: tuple[int, int] | None = None) -> ForwardTrace:
    """Trace one [1, 3, height, width] image in evaluation mode; `model` is not modified.

    `size`: (height, width), by default the network's input size. UsageError if the network does
    not accept it.

    Runs on the meta device, so that a large network takes milliseconds and no memory; a network
    that needs real values (rare) is run on zeros instead, which gives the same shapes.
    """
    height, width = size or (input_size(model), input_size(model))
    try:
        with signals_deferred():
            return _trace(model, height, width, torch.device("meta"))
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError):
        pass  # timm and torchvision assert sizes; the second attempt reports it
    try:
        return _trace(model, height, width, next(model.parameters()).device)
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError) as error:
        raise UsageError(
            f"{type(model).__name__} does not accept a 3x{height}x{width} image: {error}",
            "Choose another size (--image-size, --size-crops) or --arch.",
        ) from error


def forward_flops(model: nn.Module, side: int) -> float:
    """FLOPs (multiplications and additions) of one [1, 3, side, side] image's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with signals_deferred(), FlopCounterMode(display=False) as count:
        trace_forward(model, (side, side))
    return float(count.get_total_flops())


def _trace(model: nn.Module, height: int, width: int, device: torch.device) -> ForwardTrace:
    traced = ForwardTrace()
    traced.parameters = {
        name: _copy_of(parameter, device).requires_grad_(parameter.is_floating_point())
        for name, parameter in model.named_parameters()
    }
    buffers = {name: _copy_of(buffer, device) for name, buffer in model.named_buffers()}
    image = example_input(model, (height, width), 1, device=device)
    with evaluation_mode(model), _recording(model, traced):
        output = functional_call(model, {**traced.parameters, **buffers}, (image,))
    if not isinstance(output, Tensor):
        raise UsageError(
            f"{type(model).__name__} returns {type(output).__name__}, not one tensor of scores.",
            "Choose a classification model.",
        )
    traced.output = output
    return traced


def _copy_of(tensor: Tensor, device: torch.device) -> Tensor:
    """A detached copy that autograd accepts, also of a tensor created under `inference_mode`."""
    moved = tensor.detach().to(device)
    return moved.clone() if moved.is_inference() else moved


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode; then each module's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _recording(model: nn.Module, traced: ForwardTrace) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules() if name}

    def pre_hook(module: nn.Module, inputs: object) -> None:
        traced.order.setdefault(names[module], len(traced.order))

    def post_hook(module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            traced.shapes[names[module]] = tuple(first.shape)

    handles = [module.register_forward_pre_hook(pre_hook) for module in names]
    handles += [module.register_forward_hook(post_hook) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
