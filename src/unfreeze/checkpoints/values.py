"""Whether a tensor holds plain numbers that a network can compute with."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

# tensors that stand beside codes and turn them into weights
_SCALES = re.compile(
    r"(?:^|\.)(?:\w*_?SCB|weight_format|weight_scale(?:_inv|_2)?|scale_weight|scale_input"
    r"|input_scale|scaled_fp8|qweight|qzeros|scales|g_idx|absmax|nested_absmax|quant_map"
    r"|nested_quant_map|quant_state\.\w+|zero_point|_packed_params(?:\.\w+)?|weight_zero_point"
    r"|packed_weight|weight_packed)$"
)
_WHOLE = 1e30  # no weight is larger; a flipped bit of an exponent makes such numbers


def scales_in(names: Iterable[str]) -> list[str]:
    """Names of tensors by which codes of a quantised network are scaled."""
    return [name for name in names if _SCALES.search(name)]


def oddity(tensor: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot stand for an entry of a network, in words; "" where it can."""
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_meta:
        return "has a shape and no values (meta device)"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is not dense ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_complex() and not wanted.is_complex():
        return "holds complex numbers"
    if wanted.is_floating_point():
        return _float_oddity(tensor)
    return ""


def _float_oddity(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point():
        return f"holds {kind}, where the network has fractions: codes of a quantised file"
    if tensor.element_size() == 1:
        return f"holds {kind}: codes that need a scale to be weights"
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        what = "NaN" if bool(tensor.isnan().any()) else "infinite"
        return f"is not finite ({bad:,} of {tensor.numel():,} numbers, {what})"
    if tensor.numel() and float(tensor.abs().max()) > _WHOLE:
        return f"holds {float(tensor.abs().max()):.1e}, which is no weight: the file is damaged"
    return ""
