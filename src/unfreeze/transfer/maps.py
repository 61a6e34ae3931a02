"""The last feature map of a network: how much of a image's layout is left for the head."""

from torch import nn

from unfreeze.backbones.head import find_head
from unfreeze.backbones.trace import Shape, trace


def final_map(model: nn.Module, size: int) -> tuple[int, int] | None:
    """(height, width) of the last map before global pooling, for `size` x `size` images.

    None where no layer makes a map. For transformers on patches it is the grid of patches.
    UsageError where the network does not accept such images.
    """
    found, head = trace(model, (size, size)), find_head(model)
    last: Shape | None = None
    pooled: Shape | None = None
    for name in sorted(found.order, key=found.order.__getitem__):
        module, shape = model.get_submodule(name), found.shapes.get(name, ())
        if name == head:
            break
        if any(True for _ in module.children()):
            continue
        if isinstance(module, nn.Identity) or "Norm" in type(module).__name__:
            continue  # they change no map, and within an attention see [B, heads, tokens, width]
        if "Adaptive" in type(module).__name__:
            pooled = last  # the last such layer is the global pooling; what it is fed counts
        elif len(shape) == 4:
            last = shape
    shape_before = pooled or last
    return None if shape_before is None else _sides(shape_before)


def _sides(shape: Shape) -> tuple[int, int]:
    _, a, b, c = shape
    channels_last = a == b != c  # Swin and its like keep [B, H, W, C]
    return (a, b) if channels_last else (b, c)
