"""Spatial size of a network's last feature map before global pooling."""

from torch import nn

from unfreeze.backbones.head import find_head
from unfreeze.backbones.trace import Shape, trace


def final_map(model: nn.Module, size: int) -> tuple[int, int] | None:
    """(height, width) of the last map before global pooling, for `size` x `size` images.

    None if there is no feature map. For vision transformers it is the patch grid. Raises UsageError
    if the network does not accept images of this size.
    """
    traced, head = trace(model, (size, size)), find_head(model)
    last: Shape | None = None
    pooled: Shape | None = None
    for name in sorted(traced.order, key=traced.order.__getitem__):
        module, shape = model.get_submodule(name), traced.shapes.get(name, ())
        if name == head:
            break
        if any(True for _ in module.children()):
            continue
        if isinstance(module, nn.Identity) or "Norm" in type(module).__name__:
            continue  # they keep the shape; inside attention they get [B, heads, tokens, width]
        if "Adaptive" in type(module).__name__:
            pooled = last  # the last such layer is the global pooling: take its input
        elif len(shape) == 4:
            last = shape
    shape_before = pooled or last
    return None if shape_before is None else _sides(shape_before)


def _sides(shape: Shape) -> tuple[int, int]:
    _, a, b, c = shape
    channels_last = a == b != c  # Swin and similar networks use [B, H, W, C]
    return (a, b) if channels_last else (b, c)
