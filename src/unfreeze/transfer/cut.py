"""A network's forward pass as a graph, and the last value of it that training cannot move."""

import inspect
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, fx, nn

# what draws random numbers in training mode, by the name of its class: libraries bring their own
DRAWING = ("Dropout", "DropPath", "DropBlock", "StochasticDepth", "PatchDropout", "RReLU")
HEAD_LAYERS = 2  # so many layers that learn are a head: one, or two in distilled transformers


class NoBorder(Exception):
    """Nothing before the first part that moves can be kept; the text says why."""


class Wrapped(nn.Module):
    """A network whose `forward` takes images and nothing else, whatever options it has."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """What the network makes of them."""
        return self.network(images)


class Cut:
    """One value in the graph of a forward pass: what comes before it, and what after.

    `graph` and `root` are as `traced` gives them; `at` is the node whose value is kept.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, at: fx.Node) -> None:
        self.root, self.graph, self.at = root, graph, at

    def before(self) -> fx.GraphModule:
        """Images to the value."""
        return _part(self.root, self.graph, [self.at], at=None)

    def after(self) -> fx.GraphModule:
        """The value to what the network returns."""
        ends = [node for node in self.graph.nodes if node.op == "output"]
        return _part(self.root, self.graph, ends, at=self.at)

    def approach(self, layer: str) -> fx.GraphModule | None:
        """The value to what `layer` is fed, where nothing comes after it; else None."""
        end = next(node for node in self.graph.nodes if node.op == "output")
        last = end.args[0]
        while isinstance(last, fx.Node) and _passes_on(self.root, last):
            last = last.args[0]
        if not (isinstance(last, fx.Node) and last.op == "call_module"):
            return None
        if last.target != f"network.{layer}" or len(last.all_input_nodes) != 1:
            return None
        return _part(self.root, self.graph, last.all_input_nodes, at=self.at)


def traced(network: nn.Module) -> tuple[Wrapped, fx.Graph]:
    """The graph of `network` in its present modes and with its present frozen parameters.

    Parts without a parameter that learns are single nodes; so are parts in which all learn, unless
    only a head does: that is opened down to its layer. NoBorder where it cannot be followed.
    """
    root, closed = Wrapped(network), set[str]()
    learning = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(False))]
    open_all = len(learning) <= HEAD_LAYERS
    while True:
        tracer = _Tracer(closed, open_all=open_all)
        try:
            return root, tracer.trace(root)
        except Exception as error:  # anything a forward does with a stand-in for a tensor
            inner = tracer.inside[-1] if tracer.inside else "network"
            if inner == "network":
                raise NoBorder(f"its forward pass cannot be followed ({_brief(error)})") from error
            closed.add(inner)  # taken whole instead


def candidates(root: Wrapped, graph: fx.Graph, values: dict[fx.Node, Any]) -> Iterator[fx.Node]:
    """Values that stand still and that everything after passes through, the latest first.

    `values` are those of a pass over two images; only tensors with one row a image count.
    """
    moving, live = _moving(root, graph)
    end = next(node for node in graph.nodes if node.op == "output")
    for node in reversed(list(graph.nodes)):
        value = values.get(node)
        if node in moving or node not in live or node.op == "placeholder":
            continue
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != 2:
            continue
        if value.is_floating_point() and _all_through(end, node):
            yield node


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, noting the value; a layer may write into its input, so a copy."""
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, Tensor) else value
        return value


class _Tracer(fx.Tracer):
    def __init__(self, closed: Collection[str], *, open_all: bool) -> None:
        super().__init__()
        self.closed, self.open_all = closed, open_all
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.closed or not any(True for _ in m.children()):
            return True
        learns = {parameter.requires_grad for parameter in m.parameters()}
        return True not in learns or (len(learns) == 1 and not self.open_all)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an error: `traced` asks where it happened
        return result


def _moving(root: Wrapped, graph: fx.Graph) -> tuple[set[fx.Node], set[fx.Node]]:
    """(nodes that training can move or chance changes, nodes that depend on the images)."""
    modules, parameters = dict(root.named_modules()), dict(root.named_parameters())
    moving, live = set[fx.Node](), set[fx.Node]()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder" or any(one in live for one in inputs):
            live.add(node)
        if any(one in moving for one in inputs):
            moving.add(node)
        elif node.op == "get_attr":
            held = parameters.get(str(node.target))
            if held is not None and held.requires_grad:
                moving.add(node)
        elif _changes(node, modules):
            moving.add(node)
    return moving, live


def _changes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node itself, not what it is given, gives another value each time."""
    if node.op == "call_module":
        return _restless(modules[str(node.target)])
    return node.op == "call_function" and _draws(node)


def _restless(module: nn.Module) -> bool:
    """Whether it learns, draws random numbers, or follows statistics in its present mode."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(
        inner.training
        and (
            (any(word in type(inner).__name__ for word in DRAWING) and _chance(vars(inner)) > 0)
            or any(True for _ in inner.buffers(recurse=False))
        )
        for inner in module.modules()
    )


def _draws(node: fx.Node) -> bool:
    """Whether a function is called with `training=True` and a chance, or drops attention."""
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    given.apply_defaults()
    said = given.arguments
    return bool(said.get("training") and _chance(said) > 0) or said.get("dropout_p", 0) != 0


def _chance(said: Any) -> float:
    return float(next((said[k] for k in ("p", "drop_prob", "dropout") if k in said), 1.0) or 0)


def _passes_on(root: nn.Module, node: fx.Node) -> bool:
    """Whether a layer gives what it is given."""
    named = node.op == "call_module" and root.get_submodule(str(node.target))
    return isinstance(named, nn.Identity)


def _all_through(end: fx.Node, at: fx.Node) -> bool:
    return not any(node.op == "placeholder" for node in _needed([end], at))


def _needed(ends: list[fx.Node], at: fx.Node | None) -> set[fx.Node]:
    """Everything that `ends` are computed from, as far as `at`, which is not in it."""
    found, todo = set[fx.Node](), list(ends)
    while todo:
        node = todo.pop()
        if node is not at and node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _part(
    root: nn.Module, graph: fx.Graph, ends: list[fx.Node], *, at: fx.Node | None
) -> fx.GraphModule:
    """A module from the images (`at` None) or the value at `at` to the one of `ends`."""
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if at is not None:
        copies[at] = part.placeholder("kept")
    wanted = _needed(ends, at)
    for node in graph.nodes:
        if node in wanted:
            copies[node] = part.node_copy(node, lambda one: copies[one])
    if ends[0].op != "output":
        part.output(copies[ends[0]])
    part.lint()
    return fx.GraphModule(root, part)


def _brief(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:100]}"
