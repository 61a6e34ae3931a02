"""Checks tensors before loading: dense, finite, not quantised, not damaged."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

# names of scales and other quantisation parameters
_SCALES = re.compile(
    r"(?:^|\.)(?:\w*_?SCB|weight_format|weight_scale(?:_inv|_2)?|scale_weight|scale_input"
    r"|input_scale|scaled_fp8|qweight|qzeros|scales|g_idx|absmax|nested_absmax|quant_map"
    r"|nested_quant_map|quant_state\.\w+|zero_point|_packed_params(?:\.\w+)?|weight_zero_point"
    r"|packed_weight|weight_packed)$"
)
_LARGEST = 1e30  # no weight is larger; a flipped exponent bit gives such values
_OUTLIER = 1e5  # times the 99th percentile of a layer; training produces no such weight
_IGNORED_LARGEST = 9  # largest values of a layer that are not used as its usual size, at least
_ZERO_RUN = 128  # consecutive zeros: a disk sector of float32 values
_NEIGHBOURS = 8  # weights beside a run of zeros that are needed to judge their usual size
_MAX_RUNS = 3  # runs of zeros; more than that is pruning, not damage


def quantisation_scales(names: Iterable[str]) -> list[str]:
    """Names of the quantisation scales of a quantised network."""
    return [name for name in names if _SCALES.search(name)]


def why_unusable(tensor: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot be loaded into the entry `wanted` of a network; "" if it can."""
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
        return f"holds {kind}, where the network has floating-point weights: a quantised file"
    if tensor.element_size() == 1:
        return f"holds {kind}: quantised weights without their scale"
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        what = "NaN" if bool(tensor.isnan().any()) else "infinite"
        return f"is not finite ({bad:,} of {tensor.numel():,} values, {what})"
    if tensor.numel() and float(tensor.abs().max()) > _LARGEST:
        return f"holds {float(tensor.abs().max()):.1e}, an impossible weight: the file is damaged"
    return ""


def damage_sign(tensor: Tensor) -> str:
    """A sign of file damage in trained weights, in words; "" for none. For files without checksum.

    Signs are a run of zeros that begins or ends inside a filter whose other weights have the usual
    size, and a value 100,000 times as large as 99 % of the layer. Pruned filters, dead filters and
    zero-initialised layers are not.
    """
    if tensor.dim() < 2 or tensor.numel() < _ZERO_RUN or not tensor.is_floating_point():
        return ""
    flat = tensor.detach().float().flatten()
    sizes = flat.abs()
    # not the median: weight decay shrinks dead filters to almost 0, often many of them
    top_values = sizes.topk(max(_IGNORED_LARGEST, sizes.numel() // 100)).values
    largest_value, usual = float(top_values[0]), float(top_values[-1])
    if usual and largest_value > _OUTLIER * usual:
        return f"holds {largest_value:.1e}, where 99 % of its values are below {usual:.1e}"
    runs = [
        run for run in _zero_runs(flat == 0) if _inside_filter(flat, *run, tensor.shape[1:].numel())
    ]
    if 0 < len(runs) <= _MAX_RUNS:
        start, end = runs[0]
        return f"has {end - start:,} zeros in a row in the middle of a filter"
    return ""


def _zero_runs(zeros: Tensor) -> list[tuple[int, int]]:
    """(start, end) of runs of at least `_ZERO_RUN` zeros."""
    if int(zeros.sum()) < _ZERO_RUN:
        return []
    edges = torch.diff(zeros.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = (torch.nonzero(edges == step).flatten().tolist() for step in (1, -1))
    return [(a, b) for a, b in zip(starts, ends, strict=True) if b - a >= _ZERO_RUN]


def _inside_filter(flat: Tensor, start: int, end: int, row: int) -> bool:
    """Whether a run begins or ends inside a filter of `row` weights whose rest has usual size."""
    usual = float(flat.square().mean().sqrt())
    before, after = flat[start - start % row : start], flat[end : end + -end % row]
    return any(
        len(rest) >= _NEIGHBOURS and float(rest.square().mean().sqrt()) > usual / 10
        for rest in (before, after)
    )
