"""Class-activation maps: which parts of an image a class score comes from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfreeze.errors import UsageError
from unfreeze.models.shape_trace import evaluation_mode

PREFIXES = 16  # tokens before those of the image (class token, registers), at most


class _Layout(NamedTuple):
    """Where a feature map has its channels and its grid; `prefix`: tokens before the grid."""

    channels: int
    width: int
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def kind(self) -> tuple[int, int]:
        """Feature maps of one kind belong to the same part of a network."""
        return self.channels, self.width

    def positions(self, values: Tensor) -> Tensor:
        """`[B, h, w]` of values without channels, [B, h, w] or [B, prefix + h * w]."""
        tokens = values[:, self.prefix :] if self.prefix else values
        return tokens.reshape(len(values), *self.grid)


def activation_maps(
    network: nn.Module, images: Tensor, classes: Tensor, *, relative: bool = True
) -> Tensor:
    """Maps float32 [B, h, w] in 0..1: the parts of each image that raise the score of its class.

    `images`: normalised [B, 3, H, W]; `classes`: int64 [B]. `relative`: the score less the mean of
    all scores, since probabilities depend on nothing else. Gradient times activation, summed over
    the channels (HiResCAM, arXiv 2011.08891), at the last feature map on all of which the score
    depends; negative values are 0, and the largest of an image is 1 (if all are negative, the map
    is 0). With average pooling and a linear layer it is CAM (arXiv 1512.04150); unlike Grad-CAM
    (arXiv 1610.02391) it is also exact where a network flattens its feature map. In a transformer
    that reads its class token alone, the tokens are those that enter the last attention, and the
    map is the size of the products, of either sign: their sum was on the object less often
    (docs/EXPLAIN.md). Nothing of the network is changed. UsageError without a feature map.
    """
    # gradients flow from the scores to the activations: parameters may be frozen
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(network):
        inputs = images.detach().clone().requires_grad_()
        with _recording(network, (inputs.shape[2], inputs.shape[3])) as recorded:
            scores: Tensor = network(inputs)
            if relative:
                scores = scores - scores.mean(dim=1, keepdim=True)
        wanted = classes.clone().to(scores.device)[:, None]
        chosen = scores.gather(1, wanted).sum()
        maps = _contributions(chosen, recorded)
    if maps is None:
        raise UsageError(
            f"{type(network).__name__} has no feature map to explain its predictions with.",
            "Omit --explain, or choose another --arch.",
        )
    maps = maps.clamp_min(0)
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _contributions(score: Tensor, recorded: list[tuple[Tensor, _Layout]]) -> Tensor | None:
    """`[B, h, w]` at the last feature map on several positions of which the score depends."""
    last, kind = None, None
    for features, layout in reversed(recorded):
        if kind is not None and layout.kind != kind:
            continue
        (gradient,) = torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        products = gradient.float() * features.detach().float()
        if last is not None:  # behind it is an attention, where the signs say little
            products = products.abs()
        maps = layout.positions(products.sum(dim=layout.channels))
        reached = layout.positions((gradient != 0).any(dim=layout.channels))
        # behind the last attention the score depends on the class token alone
        if int(reached.flatten(1).sum(dim=1).max()) > 1 or not gradient.any():
            return maps
        last, kind = (maps, layout.kind) if last is None else (last, kind)
    return last


@contextmanager
def _recording(network: nn.Module, size: tuple[int, int]) -> Iterator[list[tuple[Tensor, _Layout]]]:
    """Within the block the feature maps of all modules are listed, in the order they are done."""
    recorded, grids = list[tuple[Tensor, _Layout]](), list[tuple[int, int]]()

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        features = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(features, Tensor) or not features.requires_grad:
            return
        layout = _layout(tuple(features.shape), size, grids)
        if layout is not None:
            recorded.append((features, layout))
            if isinstance(module, nn.Conv2d):
                grids.append(layout.grid)

    inner = [module for module in network.modules() if module is not network]
    handles = [module.register_forward_hook(hook) for module in inner]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _layout(
    shape: tuple[int, ...], size: tuple[int, int], grids: list[tuple[int, int]]
) -> _Layout | None:
    """The layout of an output for images of `size`; None if it is no feature map.

    `grids`: those of the convolutions so far, among them the patches of a transformer.
    """
    if len(shape) == 4:  # [B, C, h, w], or [B, h, w, C] as in Swin
        for channels, grid in ((1, shape[2:]), (3, shape[1:3])):
            if _like_image((grid[0], grid[1]), size):
                return _Layout(channels, shape[channels], (grid[0], grid[1]))
    if len(shape) == 3:  # [B, tokens, C]
        fits = [(shape[1] - h * w, (h, w)) for h, w in grids if 0 <= shape[1] - h * w <= PREFIXES]
        if fits:
            prefix, grid_of_patches = min(fits)
            return _Layout(2, shape[2], grid_of_patches, prefix)
        height = max(1, round((shape[1] * size[0] / size[1]) ** 0.5))
        whole = (height, shape[1] // height)
        if height * whole[1] == shape[1] and _like_image(whole, size):
            return _Layout(2, shape[2], whole)
    return None


def _like_image(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid of several cells has the image's aspect ratio, up to a cell."""
    (rows, columns), (height, width) = grid, size
    apart = abs(rows * width - columns * height)
    return rows * columns > 1 and rows <= height and columns <= width and apart <= max(size)
