"""torch.fx graph of a forward pass, and the nodes at which it can be split for a feature cache."""

import inspect
import math
from collections.abc import Collection, Iterator
from typing import Any

from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import deit, vision_transformer
from torch import Tensor, fx, nn

from unfreeze.models.position_embeddings import resample_positions

# class names of layers that are random in train mode; libraries define their own such classes
DRAWING = ("Dropout", "DropPath", "DropBlock", "StochasticDepth", "PatchDropout", "RReLU")
HEAD_LAYERS = 2  # trainable layers of a head at most: one, or two in distilled transformers


class NoSplitPoint(Exception):
    """The network cannot be split for a feature cache; the message is the reason."""


class ImageOnlyModule(nn.Module):
    """Wraps a network so that `forward` takes images only, without its other arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Output of the network."""
        return self.network(images)


class GraphSplit:
    """A graph split at the node `at`, whose value is cached; `root`, `graph`: from `traced`."""

    def __init__(self, root: nn.Module, graph: fx.Graph, at: fx.Node) -> None:
        self.root, self.graph, self.at = root, graph, at

    def before(self) -> fx.GraphModule:
        """Module from the images to the cached value."""
        return _part(self.root, self.graph, [self.at], at=None)

    def after(self) -> fx.GraphModule:
        """Module from the cached value to the network's output."""
        ends = [node for node in self.graph.nodes if node.op == "output"]
        return _part(self.root, self.graph, ends, at=self.at)

    def approach(self, layer: str) -> fx.GraphModule | None:
        """Module from the cached value to the input of `layer`; None unless `layer` is the last."""
        end = next(node for node in self.graph.nodes if node.op == "output")
        last = end.args[0]
        while isinstance(last, fx.Node) and _is_identity(self.root, last):
            last = last.args[0]
        if not (isinstance(last, fx.Node) and last.op == "call_module"):
            return None
        if last.target != f"network.{layer}" or len(last.all_input_nodes) != 1:
            return None
        return _part(self.root, self.graph, last.all_input_nodes, at=self.at)


def trace_graph(network: nn.Module) -> tuple[ImageOnlyModule, fx.Graph]:
    """The graph of `network` in its current mode with its currently frozen parameters.

    A module is one node if all its parameters are frozen or all are trainable; if only a head is
    trainable, its modules are traced down to the layers. Raises NoSplitPoint if tracing fails.
    """
    root, closed = ImageOnlyModule(network), set[str]()
    trainable = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(False))]
    open_all = len(trainable) <= HEAD_LAYERS
    while True:
        tracer = _Tracer(closed, open_all=open_all)
        try:
            return root, tracer.trace(root)
        except Exception as error:  # any error of the network's code on a proxy
            inner = tracer.inside[-1] if tracer.inside else "network"
            if inner == "network":
                raise NoSplitPoint(
                    f"torch.fx cannot trace the network ({_brief(error)})"
                ) from error
            closed.add(inner)  # trace again with this module as one node


def split_candidates(
    root: ImageOnlyModule, graph: fx.Graph, values: dict[fx.Node, Any]
) -> Iterator[fx.Node]:
    """Frozen nodes through which every path from the images to the output passes, latest first.

    `values`: of a forward pass over two images; only tensors with one row per image qualify.
    """
    changing, live = _changing(root, graph)
    end = next(node for node in graph.nodes if node.op == "output")
    for node in reversed(list(graph.nodes)):
        value = values.get(node)
        if node in changing or node not in live or node.op == "placeholder":
            continue
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != 2:
            continue
        if value.is_floating_point() and _separates(end, node):
            yield node


class ValueRecorder(fx.Interpreter):
    """Runs a graph and records the value of every node."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run the node and record a copy of its value, as layers may work in place."""
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, Tensor) else value
        return value


class _Tracer(fx.Tracer):
    def __init__(self, closed: Collection[str], *, open_all: bool) -> None:
        # resampling of position embeddings branches on the image size: one node each
        super().__init__(
            autowrap_modules=(math, deit, vision_transformer),
            autowrap_functions=(resample_positions, resample_abs_pos_embed),
        )
        self.closed, self.open_all = closed, open_all
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.closed or not any(True for _ in m.children()):
            return True
        trainable = {parameter.requires_grad for parameter in m.parameters()}
        return True not in trainable or (len(trainable) == 1 and not self.open_all)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not reached after an error: `traced` reads where it happened
        return result


def _changing(root: ImageOnlyModule, graph: fx.Graph) -> tuple[set[fx.Node], set[fx.Node]]:
    """(nodes whose value is trainable or random, nodes that depend on the images)."""
    modules, parameters = dict(root.named_modules()), dict(root.named_parameters())
    changing, live = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder" or any(source in live for source in inputs):
            live.add(node)
        if any(source in changing for source in inputs):
            changing.add(node)
        elif node.op == "get_attr":
            parameter = parameters.get(str(node.target))
            if parameter is not None and parameter.requires_grad:
                changing.add(node)
        elif _varies(node, modules):
            changing.add(node)
    return changing, live


def _varies(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node's value can change while its inputs do not."""
    if node.op == "call_module":
        return _module_varies(modules[str(node.target)])
    return node.op == "call_function" and _function_varies(node)


def _module_varies(module: nn.Module) -> bool:
    """Whether the module is trainable, random or updates statistics in its current mode."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(
        inner.training
        and (
            (
                any(word in type(inner).__name__ for word in DRAWING)
                and _probability(vars(inner)) > 0
            )
            or any(True for _ in inner.buffers(recurse=False))
        )
        for inner in module.modules()
    )


def _function_varies(node: fx.Node) -> bool:
    """Whether a function is called with dropout: `training=True` and p > 0, or `dropout_p`."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    bound.apply_defaults()
    arguments = bound.arguments
    if arguments.get("training") and _probability(arguments) > 0:
        return True
    return bool(arguments.get("dropout_p", 0) != 0)


def _probability(arguments: Any) -> float:
    names = ("p", "drop_prob", "dropout")
    return float(next((arguments[name] for name in names if name in arguments), 1.0) or 0)


def _is_identity(root: nn.Module, node: fx.Node) -> bool:
    module = node.op == "call_module" and root.get_submodule(str(node.target))
    return isinstance(module, nn.Identity)


def _separates(end: fx.Node, at: fx.Node) -> bool:
    return not any(node.op == "placeholder" for node in _ancestors([end], at))


def _ancestors(ends: list[fx.Node], at: fx.Node | None) -> set[fx.Node]:
    """`ends` and all nodes they are computed from, up to but without `at`."""
    nodes, todo = set[fx.Node](), list(ends)
    while todo:
        node = todo.pop()
        if node is not at and node not in nodes:
            nodes.add(node)
            todo += node.all_input_nodes
    return nodes


def _part(
    root: nn.Module, graph: fx.Graph, ends: list[fx.Node], *, at: fx.Node | None
) -> fx.GraphModule:
    """Module from the images (`at` None), or from the value of `at`, to the value of `ends`."""
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if at is not None:
        copies[at] = part.placeholder("kept")
    needed = _ancestors(ends, at)
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, lambda source: copies[source])
    if ends[0].op != "output":
        part.output(copies[ends[0]])
    part.lint()
    return fx.GraphModule(root, part)


def _brief(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:100]}"
