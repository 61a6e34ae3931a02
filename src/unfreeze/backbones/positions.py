"""Vision transformers at any image size: position embeddings follow the grid of patches.

timm's do so where they are asked to; torchvision's refuse every size but one.
"""

import math
from typing import Any, cast

import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, VisionTransformer

# what timm's vision transformers are built with: any grid, and a border where patches do not fill
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}


class AnyGrid(Encoder):  # type: ignore[misc]  # torchvision is untyped
    """Torchvision's encoder, whose position embeddings follow `grid` (rows, columns)."""

    grid = (0, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [B, 1 + rows * columns, D] to tokens."""
        positions = resampled(self.pos_embedding, self.grid, 1)
        return cast(Tensor, self.ln(self.layers(self.dropout(input + positions))))


class AnySize(VisionTransformer):  # type: ignore[misc]
    """Torchvision's vision transformer for images of any size; its own size is as ever."""

    def _process_input(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] of images [B, 3, H, W]; patches that reach over the edge see zeros."""
        p, (height, width) = self.patch_size, x.shape[-2:]
        if height % p or width % p:
            x = F.pad(x, (0, -width % p, 0, -height % p))
        cast(AnyGrid, self.encoder).grid = (-(-height // p), -(-width // p))
        return cast(Tensor, self.conv_proj(x).flatten(2).transpose(1, 2))


def any_size(model: nn.Module) -> nn.Module:
    """The same network; torchvision's vision transformers then take images of any size."""
    if type(model) is VisionTransformer:
        model.__class__ = AnySize
        model.encoder.__class__ = AnyGrid
    return model


def native_size(model: nn.Module) -> int | None:
    """Pixels of a vision transformer that follows the size of its images; None for all others."""
    if isinstance(model, AnySize):
        return int(model.image_size)
    if getattr(model, "dynamic_img_size", False):
        declared: Any = getattr(model, "default_cfg", {})
        return int(declared["input_size"][-1])
    return None


def resampled(positions: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Position embeddings [1, prefix + N, D], N a square, for another grid of patches."""
    side = math.isqrt(positions.shape[1] - prefix)
    if grid == (side, side):
        return positions
    found: Tensor = resample_abs_pos_embed(
        positions, list(grid), [side, side], num_prefix_tokens=prefix
    )
    return found


def prefix_tokens(model: nn.Module) -> int:
    """How many position embeddings of a vision transformer are of no patch (class token, ...)."""
    count = getattr(model, "num_prefix_tokens", 1)
    return 0 if getattr(model, "no_embed_class", False) else int(count)


def square(tokens: int, prefix: int) -> int:
    """Side of the square grid that so many position embeddings are of; 0 where they are of none."""
    side = math.isqrt(max(tokens - prefix, 0))
    return side if side**2 == tokens - prefix else 0
