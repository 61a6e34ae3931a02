"""Finds, removes or replaces the classification head, and verifies the result."""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.segmentation import SEGMENTATION_HEADS, is_segmentation_network
from unfreeze.models.shape_trace import ForwardTrace, trace_forward
from unfreeze.models.text import is_text_network

Layer = nn.Linear | nn.Conv2d
ACTIVATION_TYPES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Softplus,
)


class RemovedHead(nn.Identity):
    """Marks a removed head, so that no inner layer is mistaken for the head."""


class RemovedActivation(nn.Identity):
    """Marks a removed activation behind the head."""


def find_head(model: nn.Module) -> str:
    """Dotted name of the layer that computes the class scores (the first of several).

    UsageError if the head was removed, or no layer produces the network's output.
    """
    return head_layers(model)[0]


def head_layers(model: nn.Module, *, known_trace: ForwardTrace | None = None) -> tuple[str, ...]:
    """Dotted names of all layers that compute class scores: one, or two in distilled timm models.

    timm declares them. Elsewhere it is the last Linear or Conv2d that runs in a forward pass and
    has as many outputs as the network. `known_trace`: the model's trace, if there is one. Of a
    segmentation network: its decoder and its head.
    """
    if is_segmentation_network(model):
        return SEGMENTATION_HEADS
    if is_text_network(model) and not is_headless(model):
        return ("head",)
    if is_headless(model):
        raise UsageError(
            f"{type(model).__name__} no longer has a head.",
            "Build the network again to get its head back.",
        )
    traced = known_trace or trace_forward(model)
    declared = _declared(model, traced)
    if declared:
        return declared
    for name in reversed(traced.order):
        if _computes_scores(model, traced, name):
            return (name,)
    raise UsageError(
        f"No layer of {type(model).__name__} produces class scores; it returns "
        f"{_shape_text(tuple(traced.output.shape))}.",
        "Choose a classification model.",
    )


def is_headless(model: nn.Module) -> bool:
    """Whether the head was removed by `remove_head`."""
    return bool(removed_heads(model))


def removed_heads(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the removed heads."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, RemovedHead))


def removed_activations(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the removed activations behind the head."""
    return tuple(
        name for name, module in model.named_modules() if isinstance(module, RemovedActivation)
    )


def remove_head(model: nn.Module) -> int:
    """Remove the head in place, so that forward returns features [B, D]; returns D.

    The features are the head's input; for a convolution head (SqueezeNet: convolution, ReLU,
    pooling) its pooled input. Applying the old head to pooled features does not give the old
    network's scores.
    """
    if is_segmentation_network(model):
        raise UsageError(
            "A segmentation network has no single head to remove.",
            "Use its encoder's classification network, such as torchvision/resnet18.",
        )
    for name in head_layers(model):
        model.set_submodule(name, RemovedHead())
    shape = tuple(_trace_again(model).output.shape)
    if len(shape) != 2:
        raise UsageError(
            f"{type(model).__name__} without its head returns {_shape_text(shape)}, not [1, D].",
            "Choose another --arch.",
        )
    return shape[1]


def replace_head(model: nn.Module, classes: int, *, kind: str = "replace") -> list[str]:
    """Replace the head in place by one with `classes` outputs; returns its parameters' names.

    `replace`: a layer of the old type (Linear or Conv2d), with a bias if that had one. `append`:
    such a layer after the old head. `mlp:WIDTH`: a hidden layer with ReLU before it. Its weights
    are drawn from N(0, 0.01) with bias 0, so that training starts at a loss of ln(classes). A
    forward and a backward pass verify that scores are [1, classes] and every new parameter has a
    gradient; UsageError otherwise.
    """
    if classes < 1:
        raise UsageError(f"A head needs at least one output, not {classes}.", "Give more classes.")
    if is_segmentation_network(model):
        raise UsageError("The head of a segmentation network is built with it.", "Give --classes.")
    names = head_layers(model)
    # referenced until the end: a freed parameter's id() could be reused by a new one
    old_parameters = [parameter for name in names for parameter in _layer(model, name).parameters()]
    old_ids = {id(parameter) for parameter in old_parameters}
    width = _hidden_width(kind)
    for name in names:
        model.set_submodule(name, _new_head(_layer(model, name), classes, kind, width))
    if hasattr(model, "num_classes"):
        vars(model)["num_classes"] = classes  # read by torchvision and timm
    new = [
        f"{name}.{part}"
        for name in names
        for part, parameter in _layer(model, name).named_parameters()
        if id(parameter) not in old_ids
    ]
    _verify(model, new, set() if kind == "append" else old_ids, classes)
    _remove_activations(model, names, classes)
    return new


def _remove_activations(model: nn.Module, names: Sequence[str], classes: int) -> None:
    """Remove activations behind the scoring layers.

    SqueezeNet has a ReLU there. With a new head, a class whose scores start below 0 would never
    get a gradient.
    """
    traced = trace_forward(model)
    last = max(traced.order[name] for name in names)
    for name, position in traced.order.items():
        module = model.get_submodule(name)
        if (
            position > last
            and isinstance(module, ACTIVATION_TYPES)
            and classes in traced.shapes[name]
        ):
            model.set_submodule(name, RemovedActivation())


def _hidden_width(kind: str) -> int:
    """Width of the hidden layer, 0 for none; UsageError for an unknown kind."""
    name, _, width = kind.partition(":")
    if kind in ("replace", "append"):
        return 0
    if name == "mlp" and width.isdecimal() and int(width):
        return int(width)
    raise UsageError(f"--head does not support {kind!r}.", "Use replace, append or mlp:WIDTH.")


def _new_head(old: Layer, classes: int, kind: str, width: int) -> nn.Module:
    if kind == "append":
        return nn.Sequential(old, _scoring_layer(old, old.weight.shape[0], classes))
    if not width:
        return _new_layer(old, classes)
    hidden = _new_layer(old, width)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    if hidden.bias is not None:
        nn.init.constant_(hidden.bias, 0.01)  # no dead units where features are 0
    return nn.Sequential(hidden, nn.ReLU(), _scoring_layer(old, width, classes))


def _scoring_layer(old: Layer, width: int, classes: int) -> Layer:
    """A scoring layer with `width` inputs: a 1x1 convolution if the head is a convolution."""
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    wide = isinstance(old, nn.Conv2d)
    return _new_layer(
        nn.Conv2d(width, 1, 1, **options) if wide else nn.Linear(width, 1, **options), classes
    )


def _verify(model: nn.Module, new: list[str], old: set[int], classes: int) -> None:
    traced = _trace_again(model)
    shape = tuple(traced.output.shape)
    old_names = [name for name, parameter in model.named_parameters() if id(parameter) in old]
    if shape == (1, classes) and traced.reached(new) and not old_names:
        return
    raise UsageError(
        f"The head of {type(model).__name__} could not be replaced: after the swap it returns "
        f"{_shape_text(shape)}, and {', '.join(old_names) or 'a new parameter'} is out of place.",
        "Choose another --arch.",
    )


def _trace_again(model: nn.Module) -> ForwardTrace:
    try:
        return trace_forward(model)
    except UsageError as error:
        raise UsageError(
            f"{type(model).__name__} does not run without its own head.", "Choose another --arch."
        ) from error


def _new_layer(old: Layer, classes: int) -> Layer:
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    options["bias"] = old.bias is not None
    new: Layer
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, **options)
    else:
        options |= {"stride": old.stride, "padding": old.padding}
        new = nn.Conv2d(old.in_channels, classes, cast(Any, old.kernel_size), **options)
    nn.init.normal_(new.weight, std=0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _declared(model: nn.Module, traced: ForwardTrace) -> tuple[str, ...]:
    """The scoring layers that timm declares in its configuration or returns as its classifier."""
    declared = (getattr(model, "default_cfg", None) or {}).get("classifier") or ()
    names = (declared,) if isinstance(declared, str) else tuple(declared)
    getter = getattr(model, "get_classifier", None)
    classifier = getter() if callable(getter) else ()
    parts = classifier if isinstance(classifier, tuple | list) else (classifier,)
    inside = {layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()}
    return tuple(
        name
        for name, layer in model.named_modules()
        if (name in names or layer in inside) and _computes_scores(model, traced, name)
    )


def _computes_scores(model: nn.Module, traced: ForwardTrace, name: str) -> bool:
    if name not in traced.shapes or not isinstance(model.get_submodule(name), Layer):
        return False
    scores, shape = traced.output.shape, traced.shapes[name]
    width = shape[-1] if isinstance(model.get_submodule(name), nn.Linear) else shape[1]
    return len(scores) == 2 and width == scores[1]


def _layer(model: nn.Module, name: str) -> Layer:
    return cast(Layer, model.get_submodule(name))


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
