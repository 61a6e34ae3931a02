"""Splits a partly frozen network at its last frozen tensor, and verifies both halves.

Everything before the split is frozen, in eval mode and deterministic, and the second half depends
on the image through this tensor only. The tensor is the actual input of the next layer, never a
pooled version of it: the head of a SqueezeNet is a convolution, a ReLU and then the pooling.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unfreeze.models.shape_trace import example_input
from unfreeze.runtime.signals import signals_deferred
from unfreeze.transfer.freezing.freeze import apply_freeze
from unfreeze.transfer.freezing.fx_partition import (
    GraphSplit,
    ImageOnlyModule,
    NoSplitPoint,
    ValueRecorder,
    split_candidates,
    trace_graph,
)

__all__ = ["NoSplitPoint", "SplitPoint", "find_split_point", "split_flops"]

# errors of a forward pass that was split, or that does not accept these images
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
TOLERANCE = 1e-4  # of the largest value, for the same computation on the same inputs
GROUPING = 1e-2  # likewise for another batch size: other kernels, perhaps in TF32


@dataclass(frozen=True)
class SplitPoint:
    """A forward pass split in two.

    `name`, `shape`: of the cached tensor, for one image. `entries`: state dict entries it depends
    on. `text`: the code up to it, for cache keys. `before` maps images to the tensor, `after` maps
    it to the logits in the network's current mode. `learner`: name of the only trainable layer,
    a Linear that computes the logits from the output of `approach`; else None. `direct`: in eval
    mode `approach` is the identity.
    """

    name: str
    shape: tuple[int, ...]
    entries: tuple[str, ...]
    text: str
    before: Callable[[Tensor], Tensor]
    after: Callable[[Tensor], Tensor]
    learner: str | None
    approach: Callable[[Tensor], Tensor] | None
    direct: bool = False


def split_flops(network: nn.Module, split_point: SplitPoint, side: int) -> tuple[float, float]:
    """FLOPs of one image: (before the split, after it)."""
    device = next(network.parameters()).device
    images = example_input(network, (side, side), 2, device=device)
    with (
        signals_deferred(),
        _restored(network),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        network.eval()
        features = split_point.before(images)
        first = counter.get_total_flops()
        split_point.after(features.clone())
    return first / 2, (counter.get_total_flops() - first) / 2


def find_split_point(network: nn.Module, frozen: Collection[str], side: int) -> SplitPoint:
    """The latest possible split of `network` with `frozen` parameters, for `side`-pixel images.

    Verified on two random images in train and eval mode: both halves together return what the
    network returns. Applies the freezing and changes nothing else. Raises NoSplitPoint with
    the reason if there is no split.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = example_input(network, (side, side), 2, device=device, generator=generator)
    with _restored(network), torch.no_grad():
        apply_freeze(network, frozen)
        network.train()
        try:
            split_point = _find(network, images)
        except FAILURES as error:
            raise NoSplitPoint(f"the forward pass fails on a random image: {error}") from error
    apply_freeze(network, frozen)  # frozen modules stay in eval mode
    return split_point


def _find(network: nn.Module, images: Tensor) -> SplitPoint:
    try:
        if not images.is_floating_point():  # tokens: their number differs, and code follows it
            raise NoSplitPoint("only its last layer has inputs of a fixed size")
        split_point = _by_graph(network, images)
    except NoSplitPoint as reason:
        split_point = _by_hook(network, images, reason)
    _verify(network, split_point, images)
    network.eval()
    features = split_point.before(images)
    same = split_point.approach is not None and torch.equal(
        split_point.approach(features.clone()), features
    )
    return replace(split_point, direct=same)


def _by_graph(network: nn.Module, images: Tensor) -> SplitPoint:
    cut, root = _latest(network, images)
    network.eval()
    eval_cut = _in_eval_mode(network, cut)
    network.train()
    before, train_after, eval_after = cut.before(), cut.after(), eval_cut.after()
    layer = _only_trainable(network)
    approach = cut.approach(layer) if layer and _is_linear(network, layer) else None

    def after(features: Tensor) -> Tensor:
        logits: Tensor = train_after(features) if network.training else eval_after(features)
        return logits

    return SplitPoint(
        name=cut.at.name.removeprefix("network_"),
        shape=tuple(before(images).shape[1:]),
        entries=_entries(root, cut),
        text=_text(root, before),
        before=functools.partial(_without_grad, before),
        after=after,
        learner=layer if approach is not None else None,
        approach=approach,
    )


def _by_hook(network: nn.Module, images: Tensor, reason: NoSplitPoint) -> SplitPoint:
    """For a network that torch.fx cannot trace: the input of its only trainable layer."""
    layer = _only_trainable(network)
    if layer is None:
        raise reason
    before, after = functools.partial(layer_input, network, layer), network.get_submodule(layer)
    features = before(images)
    linear = _is_linear(network, layer)
    return SplitPoint(
        name=f"{layer}_input",
        shape=tuple(features.shape[1:]),
        entries=tuple(n for n in network.state_dict() if not n.startswith(f"{layer}.")),
        text=repr(network),
        before=before,
        after=after,
        learner=layer if linear else None,
        approach=_identity if linear else None,
    )


class _Done(Exception):
    """Stops a forward pass once the wanted layer is called."""


def layer_input(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Input of `layer` in a forward pass over `images`; later layers do not run."""
    captured = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0])
        raise _Done

    handle = network.get_submodule(layer).register_forward_pre_hook(capture)
    try:
        with torch.no_grad(), contextlib.suppress(_Done):
            network(images)
    finally:
        handle.remove()
    if not captured:
        raise NoSplitPoint(f"{layer} is not called in the forward pass")
    return captured[0]


def _identity(features: Tensor) -> Tensor:
    return features


def _latest(network: nn.Module, images: Tensor) -> tuple[GraphSplit, ImageOnlyModule]:
    root, graph = trace_graph(network)
    recorder = ValueRecorder(root, graph)
    try:
        recorder.run(images)
    except Exception as error:  # any error of the network's code on real images
        raise NoSplitPoint(f"the traced forward pass fails: {error}".splitlines()[0]) from error
    for node in split_candidates(root, graph, recorder.values):
        cut = GraphSplit(root, graph, node)
        if _entries(root, cut) and _rows_are_images(cut, images):
            return cut, root
    raise NoSplitPoint("no single frozen tensor comes before the first trainable layer")


def _in_eval_mode(network: nn.Module, cut: GraphSplit) -> GraphSplit:
    """The split at the node of the same name in the graph of eval mode."""
    root, graph = trace_graph(network)
    node = next((node for node in graph.nodes if node.name == cut.at.name), None)
    if node is None:
        raise NoSplitPoint("its forward pass takes other layers in eval mode")
    return GraphSplit(root, graph, node)


def _rows_are_images(cut: GraphSplit, images: Tensor) -> bool:
    """Whether each row depends only on its own image."""
    before = cut.before()
    both, first = before(images), before(images[:1])
    return first.shape[0] == 1 and _close(first, both[:1], GROUPING)


def _without_grad(before: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = before(images)
    return features


def _only_trainable(network: nn.Module) -> str | None:
    """Name of the only layer with trainable parameters; None if there are several or none."""
    trainable = [
        name
        for name, module in network.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    return trainable[0] if len(trainable) == 1 else None


def _is_linear(network: nn.Module, layer: str) -> bool:
    return type(network.get_submodule(layer)) is nn.Linear


def _entries(root: ImageOnlyModule, cut: GraphSplit) -> tuple[str, ...]:
    """Entries of the network's state dict that the part before the split uses."""
    targets = [
        str(node.target).removeprefix("network.")
        for node in cut.before().graph.nodes
        if node.op in ("call_module", "get_attr")
    ]
    entries = root.network.state_dict(keep_vars=True)
    return tuple(
        name for name in entries if any(name == t or name.startswith(f"{t}.") for t in targets)
    )


def _text(root: ImageOnlyModule, before: Any) -> str:
    """Generated code of the first half, and a digest of its layers' reprs."""
    modules = dict(root.named_modules())
    layers = [
        f"{node.target}: {modules[str(node.target)]!r}"
        for node in before.graph.nodes
        if node.op == "call_module"
    ]
    digest = hashlib.sha256("\n".join(layers).encode()).hexdigest()
    return f"{before.code}\n{digest}"


def _verify(network: nn.Module, split_point: SplitPoint, images: Tensor) -> None:
    for training in (True, False):
        network.train(training)
        expected = _seeded(network, images, 1)
        features = _seeded(split_point.before, images, 2)
        if not torch.equal(features, _seeded(split_point.before, images, 3)):
            raise NoSplitPoint("the frozen part draws random numbers")
        logits = _seeded(split_point.after, features, 1)
        if expected.shape != logits.shape or not _close(expected, logits):
            raise NoSplitPoint("its two halves do not return what the network returns")


def _seeded(forward: Callable[[Tensor], Any], inputs: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    result = forward(inputs.clone())  # a layer may work in place
    if not isinstance(result, Tensor):
        raise NoSplitPoint(f"the network returns {type(result).__name__}, not one tensor")
    return result


def _close(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> bool:
    scale = float(left.abs().max()) or 1.0
    return bool((left - right).abs().max() <= tolerance * scale)


@contextlib.contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Context manager: restores modes, buffers and the random state."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, mode in modes:
                module.training = mode
