"""The border of a frozen network: the input of the first part that moves, found and proved.

Everything before it stands still, is in inference mode and draws no random number; its value is
all of a image that the rest sees. What is kept there is the actual input of what follows, never
a pooled version of it: the head of a SqueezeNet is a convolution, a ReLU and then the pooling.
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

from unfreeze.transfer.cut import Cut, NoBorder, Recorder, Wrapped, candidates, traced
from unfreeze.transfer.freeze import apply_freeze

__all__ = ["Border", "NoBorder", "find_border", "work"]

# what a forward pass may raise that was cut in two, or that was not made for these images
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
TOLERANCE = 1e-4  # of the largest value: the same arithmetic on the same numbers
GROUPING = 1e-2  # likewise, for another number of images: other kernels, perhaps in TF32


@dataclass(frozen=True)
class Border:
    """Where a forward pass can be cut in two, and both halves.

    `name`: of the value that is kept; `shape`: its own for one image; `entries`: what of the
    state dict it depends on; `text`: what is computed up to there, for a key. `before` takes
    images to the value, `after` goes on to the scores in the network's present mode. `learner`:
    name of the Linear that alone learns and makes the scores, fed by `approach`; else None.
    `direct`: evaluated, it is fed the value as it is.
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


def work(network: nn.Module, border: Border, side: int) -> tuple[float, float]:
    """Multiplications and additions for one image: before the border, and after it."""
    device = next(network.parameters()).device
    two = torch.zeros(2, 3, side, side, device=device)
    with _untouched(network), torch.no_grad(), FlopCounterMode(display=False) as count:
        network.eval()
        kept = border.before(two)
        first = count.get_total_flops()
        border.after(kept.clone())
    return first / 2, (count.get_total_flops() - first) / 2


def find_border(network: nn.Module, frozen: Collection[str], side: int) -> Border:
    """The latest border of `network` with these parameters frozen, for images of `side` pixels.

    Proved on two made-up images, in training and in evaluation mode: both halves give what the
    whole gives. The freezing is applied; nothing else changes. NoBorder says why there is none.
    """
    device = next(network.parameters()).device
    draw = torch.Generator().manual_seed(0)
    two = torch.randn(2, 3, side, side, generator=draw).to(device)
    with _untouched(network), torch.no_grad():
        apply_freeze(network, frozen)
        network.train()
        try:
            border = _found(network, two)
        except FAILURES as error:
            raise NoBorder(f"its forward pass fails on a made-up image: {error}") from error
    apply_freeze(network, frozen)  # what stands still is in eval mode, also afterwards
    return border


def _found(network: nn.Module, two: Tensor) -> Border:
    try:
        border = _by_graph(network, two)
    except NoBorder as reason:
        border = _by_hook(network, two, reason)
    _prove(network, border, two)
    network.eval()
    kept = border.before(two)
    same = border.approach is not None and torch.equal(border.approach(kept.clone()), kept)
    return replace(border, direct=same)


def _by_graph(network: nn.Module, two: Tensor) -> Border:
    cut, root = _latest(network, two)
    network.eval()
    judged = _same_place(network, cut)
    network.train()
    before, learning, judging = cut.before(), cut.after(), judged.after()
    layer = _learner(network)
    approach = cut.approach(layer) if layer and _is_linear(network, layer) else None

    def after(kept: Tensor) -> Tensor:
        scores: Tensor = learning(kept) if network.training else judging(kept)
        return scores

    return Border(
        name=cut.at.name.removeprefix("network_"),
        shape=tuple(before(two).shape[1:]),
        entries=_entries(root, cut),
        text=_text(root, before),
        before=functools.partial(_plain, before),
        after=after,
        learner=layer if approach is not None else None,
        approach=approach,
    )


def _by_hook(network: nn.Module, two: Tensor, reason: NoBorder) -> Border:
    """For a network that cannot be followed: the input of its last layer, if only that learns."""
    layer = _learner(network)
    if layer is None:
        raise reason
    before, after = functools.partial(input_of, network, layer), network.get_submodule(layer)
    kept = before(two)
    linear = _is_linear(network, layer)
    return Border(
        name=f"{layer}_input",
        shape=tuple(kept.shape[1:]),
        entries=tuple(n for n in network.state_dict() if not n.startswith(f"{layer}.")),
        text=repr(network),
        before=before,
        after=after,
        learner=layer if linear else None,
        approach=_as_it_is if linear else None,
    )


class _Reached(Exception):
    """The layer that is waited for was called: the rest of the pass is not needed."""


def input_of(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What `layer` is fed when `network` sees `images`; what follows it is not run."""
    found = []

    def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    handle = network.get_submodule(layer).register_forward_pre_hook(take)
    try:
        with torch.no_grad(), contextlib.suppress(_Reached):
            network(images)
    finally:
        handle.remove()
    if not found:
        raise NoBorder(f"{layer} is not called in its forward pass")
    return found[0]


def _as_it_is(kept: Tensor) -> Tensor:
    return kept


def _latest(network: nn.Module, two: Tensor) -> tuple[Cut, Wrapped]:
    root, graph = traced(network)
    recorder = Recorder(root, graph)
    try:
        recorder.run(two)
    except Exception as error:  # whatever the network does with real images after tracing
        raise NoBorder(f"its traced forward pass does not run: {error}".splitlines()[0]) from error
    for node in candidates(root, graph, recorder.values):
        cut = Cut(root, graph, node)
        if _entries(root, cut) and _rows_are_images(cut, two):
            return cut, root
    raise NoBorder("nothing that stands still comes alone before the first part that learns")


def _same_place(network: nn.Module, cut: Cut) -> Cut:
    """The cut at the value of the same name in evaluation mode."""
    root, graph = traced(network)
    node = next((node for node in graph.nodes if node.name == cut.at.name), None)
    if node is None:
        raise NoBorder("it takes another way through its layers when it is evaluated")
    return Cut(root, graph, node)


def _rows_are_images(cut: Cut, two: Tensor) -> bool:
    """Whether each row depends on its own image only."""
    before = cut.before()
    both, first = before(two), before(two[:1])
    return first.shape[0] == 1 and _close(first, both[:1], GROUPING)


def _plain(before: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        kept: Tensor = before(images)
    return kept


def _learner(network: nn.Module) -> str | None:
    """The only layer with parameters that learn, if there is one alone."""
    found = [
        name
        for name, module in network.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    return found[0] if len(found) == 1 else None


def _is_linear(network: nn.Module, layer: str) -> bool:
    return type(network.get_submodule(layer)) is nn.Linear


def _entries(root: Wrapped, cut: Cut) -> tuple[str, ...]:
    """Names in the network's state dict of what the part before the cut reads."""
    targets = [
        str(node.target).removeprefix("network.")
        for node in cut.before().graph.nodes
        if node.op in ("call_module", "get_attr")
    ]
    entries = root.network.state_dict(keep_vars=True)
    return tuple(
        name for name in entries if any(name == t or name.startswith(f"{t}.") for t in targets)
    )


def _text(root: Wrapped, before: Any) -> str:
    """The code of the first half, and its layers as they print themselves."""
    modules = dict(root.named_modules())
    layers = [
        f"{node.target}: {modules[str(node.target)]!r}"
        for node in before.graph.nodes
        if node.op == "call_module"
    ]
    digest = hashlib.sha256("\n".join(layers).encode()).hexdigest()
    return f"{before.code}\n{digest}"


def _prove(network: nn.Module, border: Border, two: Tensor) -> None:
    for training in (True, False):
        network.train(training)
        whole = _seeded(network, two, 1)
        first = _seeded(border.before, two, 2)
        if not torch.equal(first, _seeded(border.before, two, 3)):
            raise NoBorder("what is frozen draws random numbers")
        halves = _seeded(border.after, first, 1)
        if whole.shape != halves.shape or not _close(whole, halves):
            raise NoBorder("its two halves do not give what the whole gives")


def _seeded(part: Callable[[Tensor], Any], value: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    result = part(value.clone())  # a layer may write into its input
    if not isinstance(result, Tensor):
        raise NoBorder(f"it returns {type(result).__name__}, not one tensor")
    return result


def _close(left: Tensor, right: Tensor, share: float = TOLERANCE) -> bool:
    scale = float(left.abs().max()) or 1.0
    return bool((left - right).abs().max() <= share * scale)


@contextlib.contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Modes, buffers and the random state are afterwards what they were."""
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
