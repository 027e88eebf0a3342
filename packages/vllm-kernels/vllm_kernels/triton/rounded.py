"""Norms and gates that round what they make to 8 bits, see ``ops.rounded``."""

from typing import Any

import torch
import triton
import triton.language as tl

from vllm_kernels.eager import rounded as eager
from vllm_kernels.linear_weight import Activation
from vllm_kernels.reference.rounded import LARGEST
from vllm_kernels.rounded_activations import Rounded
from vllm_kernels.triton.activation import apply_gate
from vllm_kernels.triton.cache import rounded_to_fp8
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import has_fp8
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.norm import WIDEST, normalise, tile

COLUMNS = 2048
"""Of a row that are rounded at a time; of shorter rows, as many as have so many together."""
WIDTHS = (128, 768, 1024, 2048, 3072, 4096, 7168, 14336)
"""Columns of activations that are rounded before projections and experts, or blocks of them."""


@triton.jit
def scale_of(peak, num_unusual, TOP: tl.constexpr):
    """Scale of rows from their greatest magnitude: NaN where an entry is not finite."""
    if TOP == 127.0:
        peak = tl.where(peak < 1e-30, 0.0, peak)
    return tl.where(num_unusual > 0, float("nan"), tl.div_rn(peak, TOP))


@triton.jit
def units_of(values, peak, scale, GIVEN: tl.constexpr, TOP: tl.constexpr):
    """fp32 values as the 8-bit numbers that stand for them, still fp32. ``peak`` and ``scale`` have their shape."""
    if GIVEN:
        units = tl.div_rn(values, scale)
    elif TOP == 127.0:
        usable = (scale > 0.0) & (peak >= 1e-30)
        units = tl.where(usable, values * tl.div_rn(127.0 + tl.zeros_like(peak), tl.where(usable, peak, 1.0)), 0.0)
    else:
        units = tl.where(scale > 0.0, tl.div_rn(values, tl.where(scale > 0.0, scale, 1.0)), 0.0)
    if TOP == 127.0:
        units = tl.where(units > 127.0, 127.0, tl.where(units < -128.0, -128.0, units))
        units = tl.where(units == units, units, 0.0)
        # Adding and taking away 1.5 * 2^23 rounds to whole numbers, ties to the even one.
        units = (units + 12582912.0) - 12582912.0
    else:
        units = tl.where(units > TOP, TOP, tl.where(units < -TOP, -TOP, units))
        units = rounded_to_fp8(units, TOP)
    return units


@triton.jit(do_not_specialize=["num_rows"])
def norm_round_kernel(
    x,
    residual,
    weight,
    given_scale,
    values,
    scales,
    new_residual,
    num_rows,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    """RMS norm of ROWS rows [HIDDEN], as ``norm_kernel``, rounded: TOP is 448 for e4m3 and 127 for int8."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    offsets = row[:, None] * HIDDEN + column[None, :]
    present = (row < num_rows)[:, None] & (column < HIDDEN)[None, :]
    numbers = tl.load(x + offsets, mask=present, other=0.0)
    if residual is not None:
        wide = numbers.to(tl.float32) + tl.load(residual + offsets, mask=present, other=0.0).to(tl.float32)
        numbers = wide.to(x.dtype.element_ty)
        tl.store(new_residual + offsets, numbers, mask=present)
    normed = normalise(numbers.to(tl.float32), present, column, weight, None, eps, HIDDEN, False, UNIT_OFFSET)
    # Rounded to the type of x first, as if the norm were made apart.
    normed = tl.where(present, normed, 0.0).to(x.dtype.element_ty).to(tl.float32)
    if given_scale is None:
        peak = tl.max(tl.abs(normed), axis=1)
        scale = scale_of(peak, tl.sum(tl.where(tl.abs(normed) < float("inf"), 0, 1), axis=1), TOP)
    else:
        peak = tl.zeros([ROWS], tl.float32)
        scale = peak + tl.load(given_scale)
    tl.store(scales + row, scale, mask=row < num_rows)
    wide_scale = scale[:, None] + tl.zeros_like(normed)
    units = units_of(normed, peak[:, None] + tl.zeros_like(normed), wide_scale, given_scale is not None, TOP)
    tl.store(values + offsets, units.to(values.dtype.element_ty), mask=present)


@triton.jit
def numbers_at(x, row, column, present, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """Entries of rows of ``x``, or of their gated half, as they are rounded to the type of ``x``: fp32."""
    if KIND == "none":
        result = tl.load(x + row * WIDTH + column, mask=present, other=0.0).to(tl.float32)
    else:
        gate = tl.load(x + row * (2 * WIDTH) + column, mask=present, other=0.0).to(tl.float32)
        value = tl.load(x + row * (2 * WIDTH) + WIDTH + column, mask=present, other=0.0).to(tl.float32)
        result = tl.where(present, apply_gate(gate, value, KIND), 0.0).to(x.dtype.element_ty).to(tl.float32)
    return result


@triton.jit(do_not_specialize=["num_rows"])
def round_rows_kernel(
    x,
    given_scale,
    values,
    scales,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS rows ``[WIDTH]``, or gates KIND of rows ``[2 * WIDTH]``, rounded: TOP is 448 for e4m3 and 127 for int8.

    Without a given scale, a row is gone over twice; the second time it comes from the cache.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_x = row < num_rows
    if given_scale is None:
        peaks = tl.zeros([ROWS, BLOCK], tl.float32)
        unusual = tl.zeros([ROWS, BLOCK], tl.int32)
        for start in range(0, WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            present = in_x[:, None] & (column < WIDTH)[None, :]
            numbers = tl.abs(numbers_at(x, row[:, None], column[None, :], present, WIDTH, KIND))
            peaks = tl.maximum(peaks, numbers)
            unusual += tl.where(numbers < float("inf"), 0, 1)
        peak = tl.max(peaks, axis=1)
        scale = scale_of(peak, tl.sum(unusual, axis=1), TOP)
    else:
        peak = tl.zeros([ROWS], tl.float32)
        scale = peak + tl.load(given_scale)
    tl.store(scales + row, scale, mask=in_x)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        present = in_x[:, None] & (column < WIDTH)[None, :]
        numbers = numbers_at(x, row[:, None], column[None, :], present, WIDTH, KIND)
        zeros = tl.zeros_like(numbers)
        units = units_of(numbers, peak[:, None] + zeros, scale[:, None] + zeros, given_scale is not None, TOP)
        tl.store(values + row[:, None] * WIDTH + column[None, :], units.to(values.dtype.element_ty), mask=present)


def round_tokens(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> Rounded:
    if not _taken(x, dtype):
        return eager.round_tokens(x, dtype, scale)
    return _round_rows(x, None, dtype, scale)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> Rounded:
    if not _taken(x, dtype) or x.shape[-1] > WIDEST:
        return eager.rms_norm(x, weight, eps, dtype, scale, unit_offset)
    return _normalise(x, None, weight, eps, dtype, scale, unit_offset)[0]


def fused_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> tuple[Rounded, torch.Tensor]:
    if not _taken(x, dtype) or x.shape[-1] > WIDEST:
        return eager.fused_add_rms_norm(x, residual, weight, eps, dtype, scale, unit_offset)
    return _normalise(x, residual, weight, eps, dtype, scale, unit_offset)


def activation_and_mul(
    x: torch.Tensor, activation: Activation, dtype: torch.dtype, scale: torch.Tensor | None
) -> Rounded:
    if not _taken(x, dtype):
        return eager.activation_and_mul(x, activation, dtype, scale)
    return _round_rows(x, activation, dtype, scale)


def _taken(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return x.dtype in FLOATS and (dtype == torch.int8 or has_fp8(x.device))


def _round_rows(
    x: torch.Tensor, activation: Activation | None, dtype: torch.dtype, scale: torch.Tensor | None
) -> Rounded:
    x = x.contiguous()
    width = x.shape[-1] // 2 if activation else x.shape[-1]
    rounded = _empty(x, width, dtype)
    constants = _row_constants(width, activation or "none", LARGEST[dtype])
    num_rows = rounded.scales.numel()
    rounding.launch((-(-num_rows // constants["ROWS"]),), x, scale, *rounded, num_rows, **constants)
    return rounded


def _normalise(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> tuple[Rounded, torch.Tensor]:
    """The rounded norm, and the sum (``x`` again where there is no residual)."""
    x = x.contiguous()
    hidden = x.shape[-1]
    rounded = _empty(x, hidden, dtype)
    new_residual = torch.empty_like(x) if residual is not None else x
    block, rows, num_warps = tile(hidden)
    num_rows = rounded.scales.numel()
    norm_rounding.launch(
        (-(-num_rows // rows),),
        x,
        None if residual is None else residual.contiguous(),
        weight.contiguous(),
        scale,
        *rounded,
        new_residual,
        num_rows,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ROWS=rows,
        UNIT_OFFSET=unit_offset,
        TOP=LARGEST[dtype],
        num_warps=num_warps,
    )
    return rounded, new_residual


def _empty(x: torch.Tensor, width: int, dtype: torch.dtype) -> Rounded:
    outer = x.shape[:-1]
    return Rounded(x.new_empty(*outer, width, dtype=dtype), x.new_empty(outer, dtype=torch.float32))


def _row_constants(width: int, kind: str, top: float) -> dict[str, Any]:
    block = min(power_of_two(width), COLUMNS)
    return {"WIDTH": width, "BLOCK": block, "ROWS": COLUMNS // block, "KIND": kind, "TOP": top}


def _formats(family: str) -> list[torch.dtype]:
    return [torch.int8] if family == "sm_80" else [torch.float8_e4m3fn, torch.int8]


def _row_configurations(family: str) -> list[Configuration]:
    sizes = [("none", width) for width in WIDTHS]
    sizes += [(kind, width) for kind in ("silu", "gelu", "gelu_tanh") for width in (3072, 14336)]
    return [
        Configuration(
            {
                "x": pointer(dtype),
                "given_scale": given,
                "values": pointer(kept),
                "scales": "*fp32",
                "num_rows": "i32",
            },
            _row_constants(width, kind, LARGEST[kept]),
        )
        for dtype in FLOATS
        for kept in _formats(family)
        for given in (None, "*fp32")
        for kind, width in sizes
    ]


def _norm_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        for kept in _formats(family):
            for given in (None, "*fp32"):
                for residual in (None, pointer(dtype)):
                    for hidden in (1024, 2048, 4096, 8192):
                        for offset in (False, True) if hidden == 2048 else (False,):
                            block, rows, num_warps = tile(hidden)
                            kind = pointer(dtype)
                            types = {"x": kind, "residual": residual, "weight": kind, "given_scale": given}
                            types |= {"values": pointer(kept), "scales": "*fp32", "new_residual": kind}
                            types |= {"num_rows": "i32", "eps": "fp32"}
                            constants: dict[str, Any] = {"HIDDEN": hidden, "BLOCK": block, "ROWS": rows}
                            constants |= {"UNIT_OFFSET": offset, "TOP": LARGEST[kept]}
                            found.append(Configuration(types, constants, num_warps))
    return found


rounding = Kernel(round_rows_kernel, _row_configurations)
norm_rounding = Kernel(norm_round_kernel, _norm_configurations)
