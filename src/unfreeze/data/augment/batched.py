"""Crops of a complete batch as tensor operations on any device.

Each operation equals that of `random_resized_crop` and `colour`, including rounding, in float32.
Random parameters are drawn on the host, so that nothing here synchronises with the device. Images
are `[B, 3, H, W]` with values 0 to 255.
"""

from functools import cache

import torch
import torch.nn.functional as F

from unfreeze.data.augment.config import CropSpec
from unfreeze.data.augment.parameters import TAPS, CropParameters

Tensor = torch.Tensor
_LUMA = (0.299, 0.587, 0.114)


def crop_batch(pixels: Tensor, drawn: CropParameters, spec: CropSpec) -> Tensor:
    """Crops uint8 `[B, S, S, 3]` of uint8 images `[B, 3, H, W]`, equal to those of `make_views`.

    Pixels outside the height and width of an image (padding) are not used.
    """
    x = pixels.float()
    x = rotate_boxes(x, drawn, spec.size) if spec.degrees else resize_boxes(x, drawn, spec.size)
    if spec.flip:
        x = torch.where(_each(drawn["flip"]), x.flip(3), x)
    if spec.jitter:
        x = color_jitter_batch(x, drawn, spec)
    if spec.grey:
        x = torch.where(_each(drawn["grey"]), _rounded(_luminance(x)).expand_as(x), x)
    if spec.blur:
        x = torch.where(_each(drawn["blur"]), gaussian_blur_batch(x, drawn["taps"]), x)
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def resize_boxes(x: Tensor, drawn: CropParameters, size: int) -> Tensor:
    """The box of each image resized to `size`: bilinear, antialiased if it shrinks."""
    top, left, height, width = drawn["box"].unbind(1)
    across = _weights(left, width, x.shape[3], size)
    down = _weights(top, height, x.shape[2], size)
    rows = x @ across.transpose(1, 2)[:, None]  # [B, 3, H, S]
    # rounded between the two passes if it shrinks, as in `random_resized_crop`
    shrinks = ((height > size) | (width > size)).view(-1, 1, 1, 1)
    rows = torch.where(shrinks, _rounded(rows), rows)
    return _rounded(down[:, None] @ rows)


def _weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """`[B, size, side]`: weight of each pixel for each position of the resized box."""
    scale = (length / size).view(-1, 1, 1)
    positions = torch.arange(size, device=start.device).view(1, -1, 1)
    pixels = torch.arange(side, device=start.device).view(1, 1, -1)
    inside = pixels - start.view(-1, 1, 1)
    distance = (inside + 0.5 - (positions + 0.5) * scale).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp(min=0)
    weights = weights * ((inside >= 0) & (inside < length.view(-1, 1, 1)))
    return weights / weights.sum(2, keepdim=True)


def rotate_boxes(x: Tensor, drawn: CropParameters, size: int) -> Tensor:
    """The box of each image at `size`, rotated about its centre; edges are repeated."""
    top, left, height, width = (part.view(-1, 1, 1) for part in drawn["box"].unbind(1))
    angle = drawn["angle"].view(-1, 1, 1)
    offset = torch.arange(size, device=x.device) - (size - 1) / 2
    u, v = (offset.view(1, 1, -1) * width / size), (offset.view(1, -1, 1) * height / size)
    across = torch.cos(angle) * u - torch.sin(angle) * v + left + (width - 1) / 2
    down = torch.sin(angle) * u + torch.cos(angle) * v + top + (height - 1) / 2
    rows, columns = (drawn["sides"][:, k].view(-1, 1, 1) for k in (0, 1))
    return _rounded(_bilinear(x, down, across, rows - 1, columns - 1))


def _bilinear(x: Tensor, down: Tensor, across: Tensor, last_row: Tensor, last: Tensor) -> Tensor:
    """Values `[B, 3, S, S]` of `x` at the coordinates `down`, `across` `[B, S, S]`."""
    y, z = down.floor(), across.floor()
    flat, total = x.flatten(2), torch.zeros((), device=x.device)
    for row, by in ((y, 1 - (down - y)), (y + 1, down - y)):
        for column, share in ((z, 1 - (across - z)), (z + 1, across - z)):
            inside = torch.minimum(row.clamp(min=0), last_row) * x.shape[3]
            index = (inside + torch.minimum(column.clamp(min=0), last)).long().flatten(1)
            values = flat.gather(2, index[:, None].expand(-1, 3, -1)).view(
                *x.shape[:2], *y.shape[1:]
            )
            total = total + values * (by * share)[:, None]
    return total


def color_jitter_batch(x: Tensor, drawn: CropParameters, spec: CropSpec) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order of each image."""
    strengths = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    changed = x
    for position in range(4):
        step = drawn["order"][:, position]
        result = changed
        if any(strengths[:3]):
            result = torch.where(_each(step < 3), _blended(changed, step, drawn["factors"]), result)
        if spec.hue:
            result = torch.where(_each(step == 3), adjust_hue_batch(changed, drawn["hue"]), result)
        for k, strength in enumerate(strengths):
            if not strength:
                result = torch.where(_each(step == k), changed, result)
        changed = result
    return torch.where(_each(drawn["jitter"]), changed, x)


def _blended(x: Tensor, step: Tensor, factors: Tensor) -> Tensor:
    """Brightness (0), contrast (1) or saturation (2): blended with black, mean or luminance."""
    factor = _each(factors.gather(1, step.clamp(max=2).long()[:, None])[:, 0])
    luminance = _luminance(x)
    mean = (luminance.mean((2, 3), keepdim=True) + 0.5).floor()
    other = torch.where(_each(step == 1), mean, luminance)
    other = torch.where(_each(step == 0), torch.zeros_like(other), other)
    return _rounded(factor * x + (1 - factor) * other)


def adjust_hue_batch(x: Tensor, turn: Tensor) -> Tensor:
    """Hue shifted by `turn` `[B]` of 256 steps, in 8-bit HSV with OpenCV's tables."""
    red, green, blue = x.int().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    span = value - torch.minimum(torch.minimum(red, green), blue)
    far = torch.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    far = torch.where(value == red, green - blue, far)
    by_span, by_value = _divisions(x.device)
    hue = ((far * by_span[span] + (1 << 11)) >> 12) + turn.int().view(-1, 1, 1)
    saturation = ((span * by_value[value] + (1 << 11)) >> 12) / 255
    sixths = torch.remainder(hue, 256) * (6 / 255)
    # each channel is lower than `value` by `saturation` if the hue is far from it
    away = [torch.remainder(sixths + offset, 6) for offset in (5, 3, 1)]
    falls = torch.stack([torch.minimum(k, 4 - k).clamp(0, 1) for k in away], 1)
    return _rounded(value[:, None] * (1 - saturation[:, None] * falls))


@cache
def _divisions(device: torch.device) -> tuple[Tensor, Tensor]:
    """256 / 6 and 255 divided by 0 to 255, in units of 1 / 4096; 0 for division by 0."""
    levels = torch.arange(256, dtype=torch.float64)
    tables = [(n * 4096 / levels).round() for n in (256 / 6, 255)]
    hue, saturation = (torch.where(levels > 0, t, 0.0).int().to(device) for t in tables)
    return hue, saturation


def gaussian_blur_batch(x: Tensor, taps: Tensor) -> Tensor:
    """Gaussian blur with the kernel of each image, `taps` `[B, TAPS]`; edges are repeated."""
    size = x.shape[2]
    spread = _repeating(size, x.device)
    matrix = (taps @ spread.flatten(1)).view(-1, 1, size, size)
    return _rounded(matrix @ x @ matrix.transpose(2, 3))


@cache
def _repeating(size: int, device: torch.device) -> Tensor:
    """`[TAPS, size, size]`: one-hot pixel of each tap for each position; edges are repeated."""
    offsets = torch.arange(TAPS) - TAPS // 2
    pixels = (torch.arange(size)[None] + offsets[:, None]).clamp(0, size - 1)
    return F.one_hot(pixels, size).float().to(device)


def _luminance(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _rounded(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255)


def _each(values: Tensor) -> Tensor:
    """One value per image `[B]`, as `[B, 1, 1, 1]`."""
    return values.view(-1, 1, 1, 1)
