"""The layer that makes the class scores: found, taken off, or replaced, and each time verified."""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from unfreeze.backbones.trace import Trace, trace
from unfreeze.errors import UsageError

Layer = nn.Linear | nn.Conv2d
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Softplus)


class NoHead(nn.Identity):
    """Stands where a head was taken off, so that nobody mistakes an inner layer for the head."""


class NoActivation(nn.Identity):
    """Stands where an activation behind the head was taken away."""


def find_head(model: nn.Module) -> str:
    """Dotted name of the layer that makes the class scores (the first, if there are several).

    UsageError: the head was taken off, or no layer makes what the network returns.
    """
    return head_layers(model)[0]


def head_layers(model: nn.Module, *, found: Trace | None = None) -> tuple[str, ...]:
    """Dotted names of all layers that make class scores: one; two in distilled timm models.

    timm says which they are. Elsewhere it is the last Linear or Conv2d that runs in a forward
    pass and is as wide as what comes out.
    """
    if is_headless(model):
        raise UsageError(
            f"{type(model).__name__} no longer has a head.",
            "Build the network again to get its head back.",
        )
    seen = found or trace(model)
    declared = _declared(model, seen)
    if declared:
        return declared
    for name in reversed(seen.order):
        if _makes_scores(model, seen, name):
            return (name,)
    raise UsageError(
        f"No layer of {type(model).__name__} makes class scores; it returns "
        f"{_text(tuple(seen.output.shape))}.",
        "Choose a classification model.",
    )


def is_headless(model: nn.Module) -> bool:
    """Whether `headless` was here."""
    return bool(places_without(model))


def places_without(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the places from which a head was taken off."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, NoHead))


def removed_activations(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the places from which an activation behind the head was taken away."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, NoActivation))


def headless(model: nn.Module) -> int:
    """Take the head off in place: forward then returns features [B, D]; D is returned.

    The features are what the head was fed. For a convolution head (SqueezeNet: convolution, ReLU,
    pooling) they are its input, pooled; the old head applied to pooled features is another
    function than the old network.
    """
    for name in head_layers(model):
        model.set_submodule(name, NoHead())
    shape = tuple(_retraced(model).output.shape)
    if len(shape) != 2:
        raise UsageError(
            f"{type(model).__name__} without its head returns {_text(shape)}, not [1, D].",
            "Choose another --arch.",
        )
    return shape[1]


def replace_head(model: nn.Module, classes: int, *, kind: str = "replace") -> list[str]:
    """Put a new head for `classes` scores in the place of the old; names of its parameters.

    `replace`: one layer of the old one's kind (Linear or Conv2d), with a bias where there was one.
    `append`: the old layer stays and such a layer follows it. `mlp:WIDTH`: a hidden layer and ReLU
    come before. Weights of the scoring layer are from N(0, 0.01), its bias 0: training starts at a
    loss of ln(classes). The swap is then proved by a forward pass: scores are [1, classes] and
    every new parameter has a gradient.
    """
    if classes < 2:
        raise UsageError(
            f"A classifier needs at least two classes, not {classes}.",
            "Use data with two or more classes.",
        )
    names = head_layers(model)
    # kept alive: what is freed may lend its identity to what is made next
    before = [parameter for name in names for parameter in _layer(model, name).parameters()]
    old = {id(parameter) for parameter in before}
    width = _hidden(kind)
    for name in names:
        model.set_submodule(name, _made(_layer(model, name), classes, kind, width))
    if hasattr(model, "num_classes"):
        vars(model)["num_classes"] = classes  # torchvision and timm keep count there
    new = [
        f"{name}.{part}"
        for name in names
        for part, parameter in _layer(model, name).named_parameters()
        if id(parameter) not in old
    ]
    _prove(model, new, set() if kind == "append" else old, classes)
    _unbent(model, names, classes)
    return new


def _unbent(model: nn.Module, names: Sequence[str], classes: int) -> None:
    """Take away activations behind the scoring layers.

    SqueezeNet has a ReLU there. In a network that was trained with it that is harmless; a new head
    dies of it: a class whose scores start below 0 never gets a gradient.
    """
    seen = trace(model)
    last = max(seen.order[name] for name in names)
    for name, place in seen.order.items():
        module = model.get_submodule(name)
        if place > last and isinstance(module, ACTIVATIONS) and classes in seen.shapes[name]:
            model.set_submodule(name, NoActivation())


def _hidden(kind: str) -> int:
    """Width of the hidden layer, 0 for none; UsageError for a kind that nobody knows."""
    name, _, width = kind.partition(":")
    if kind in ("replace", "append"):
        return 0
    if name == "mlp" and width.isdecimal() and int(width):
        return int(width)
    raise UsageError(f"--head does not support {kind!r}.", "Use replace, append or mlp:WIDTH.")


def _made(old: Layer, classes: int, kind: str, width: int) -> nn.Module:
    if kind == "append":
        return nn.Sequential(old, _following(old, old.weight.shape[0], classes))
    if not width:
        return _fresh(old, classes)
    hidden = _fresh(old, width)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    if hidden.bias is not None:
        nn.init.constant_(hidden.bias, 0.01)  # no unit is dead where features are 0 at first
    return nn.Sequential(hidden, nn.ReLU(), _following(old, width, classes))


def _following(old: Layer, width: int, classes: int) -> Layer:
    """A scoring layer behind `width` outputs: a 1x1 convolution where the head is one."""
    place: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    wide = isinstance(old, nn.Conv2d)
    return _fresh(
        nn.Conv2d(width, 1, 1, **place) if wide else nn.Linear(width, 1, **place), classes
    )


def _prove(model: nn.Module, new: list[str], old: set[int], classes: int) -> None:
    after = _retraced(model)
    shape = tuple(after.output.shape)
    left = [name for name, parameter in model.named_parameters() if id(parameter) in old]
    if shape == (1, classes) and after.reached(new) and not left:
        return
    raise UsageError(
        f"The head of {type(model).__name__} could not be replaced: after the swap it returns "
        f"{_text(shape)}, and {', '.join(left) or 'a new parameter'} is out of place.",
        "Choose another --arch.",
    )


def _retraced(model: nn.Module) -> Trace:
    try:
        return trace(model)
    except UsageError as error:
        raise UsageError(
            f"{type(model).__name__} does not run without its own head.", "Choose another --arch."
        ) from error


def _fresh(old: Layer, classes: int) -> Layer:
    place: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    place["bias"] = old.bias is not None
    new: Layer
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, **place)
    else:
        place |= {"stride": old.stride, "padding": old.padding}
        new = nn.Conv2d(old.in_channels, classes, cast(Any, old.kernel_size), **place)
    nn.init.normal_(new.weight, std=0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _declared(model: nn.Module, seen: Trace) -> tuple[str, ...]:
    """The scoring layers timm names in its configuration or holds inside its classifier."""
    written = (getattr(model, "default_cfg", None) or {}).get("classifier") or ()
    names = (written,) if isinstance(written, str) else tuple(written)
    ask = getattr(model, "get_classifier", None)
    given = ask() if callable(ask) else ()
    parts = given if isinstance(given, tuple | list) else (given,)
    inside = {layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()}
    return tuple(
        name
        for name, layer in model.named_modules()
        if (name in names or layer in inside) and _makes_scores(model, seen, name)
    )


def _makes_scores(model: nn.Module, seen: Trace, name: str) -> bool:
    if name not in seen.shapes or not isinstance(model.get_submodule(name), Layer):
        return False
    scores, shape = seen.output.shape, seen.shapes[name]
    width = shape[-1] if isinstance(model.get_submodule(name), nn.Linear) else shape[1]
    return len(scores) == 2 and width == scores[1]


def _layer(model: nn.Module, name: str) -> Layer:
    return cast(Layer, model.get_submodule(name))


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
