"""Vision transformers for any image size: position embeddings are resampled to the patch grid.

timm has an option for this; torchvision's accept one size only.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, VisionTransformer

# arguments of timm's vision transformers: any patch grid, padding up to whole patches
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}


class PositionlessEncoder(Encoder):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's encoder for tokens that have their position embeddings already."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [B, N, D] to tokens of the same shape."""
        return cast(Tensor, self.ln(self.layers(self.dropout(input))))


class AnySizeVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """torchvision's vision transformer for any image size; unchanged at its native size.

    No step depends on the image size in Python, so that torch.fx can trace it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W], which are zero-padded to whole patches."""
        p, (height, width) = self.patch_size, x.shape[-2:]
        x = F.pad(x, (0, -width % p, 0, -height % p))
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        grid = (-(-height // p), -(-width // p))
        tokens = tokens + resample_positions(self.encoder.pos_embedding, grid, 1)
        return cast(Tensor, self.heads(self.encoder(tokens)[:, 0]))


def allow_any_size(model: nn.Module) -> nn.Module:
    """The same model; torchvision's vision transformers then accept any image size."""
    if type(model) is VisionTransformer:
        model.__class__ = AnySizeVisionTransformer
        model.encoder.__class__ = PositionlessEncoder
    return model


def native_size(model: nn.Module) -> int | None:
    """Native image size in pixels of a vision transformer for any size; None for other models."""
    if isinstance(model, AnySizeVisionTransformer):
        return int(model.image_size)
    if getattr(model, "dynamic_img_size", False):
        declared: Any = getattr(model, "default_cfg", {})
        return int(declared["input_size"][-1])
    return None


def padded_size(model: nn.Module, side: int) -> int:
    """`side` rounded up to whole patches, as a vision transformer for any size pads its images.

    `side` itself for other models.
    """
    patch = getattr(model, "patch_size", None) or getattr(
        getattr(model, "patch_embed", None), "patch_size", None
    )
    if native_size(model) is None or patch is None:
        return side
    length = int(patch[0] if isinstance(patch, tuple | list) else patch)
    return side + -side % length


def resample_positions(positions: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Position embeddings [1, prefix + N, D] of a square grid, resampled to `grid`.

    Returns [1, prefix + rows * columns, D].
    """
    side = math.isqrt(positions.shape[1] - prefix)
    if grid == (side, side):
        return positions
    embeddings: Tensor = resample_abs_pos_embed(
        positions, list(grid), [side, side], num_prefix_tokens=prefix
    )
    return embeddings


def prefix_tokens(model: nn.Module) -> int:
    """Number of a vision transformer's position embeddings without a patch (class token, ...)."""
    count = getattr(model, "num_prefix_tokens", 1)
    return 0 if getattr(model, "no_embed_class", False) else int(count)


def grid_side(tokens: int, prefix: int) -> int:
    """Side of the square grid of `tokens` position embeddings; 0 if they form no square."""
    side = math.isqrt(max(tokens - prefix, 0))
    return side if side**2 == tokens - prefix else 0
