"""Activations to 8 bits, with a scale for each row and group of columns, see ``ops.quantization``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.rounded import scale_of, units_of


@dataclass(frozen=True, slots=True)
class Rounded:
    """Activations of 8 bits: int8 ``[n, in_features]``; for each row and group of columns their scale and sum.

    ``scales`` fp32 and ``sums`` int32 are ``[n, groups]``, of ``group`` columns.
    """

    q: torch.Tensor
    scales: torch.Tensor
    sums: torch.Tensor
    group: int


@triton.jit
def round_kernel(x, q, scales, sums, IN: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """One group of one row: ``q = round(x * (127 / max|x|))``, ties to even; zeros and a scale of NaN for one with an
    infinity or NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    place = tl.arange(0, BLOCK)
    column = group * GROUP + place
    present = (place < GROUP) & (column < IN)
    values = tl.load(x + row * IN + column, mask=present, other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(values), axis=0)
    scale = scale_of(peak, tl.sum(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=0), 127.0)
    zeros = tl.zeros_like(values)
    units = units_of(values, peak + zeros, scale + zeros, False, 127.0).to(tl.int32)
    tl.store(q + row * IN + column, units.to(tl.int8), mask=present)
    tl.store(scales + row * tl.num_programs(1) + group, scale)
    tl.store(sums + row * tl.num_programs(1) + group, tl.sum(units, axis=0))


def round_activations(x: torch.Tensor, scheme: Quantization) -> Rounded:
    """Activations ``[n, in_features]``, contiguous, as 8 bits."""
    num_rows, in_features = x.shape
    group = scheme.activation_group
    groups = -(-in_features // group)
    rounded = Rounded(
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(num_rows, groups, dtype=torch.float32),
        x.new_empty(num_rows, groups, dtype=torch.int32),
        group,
    )
    rounding.launch(
        (num_rows, groups),
        x,
        rounded.q,
        rounded.scales,
        rounded.sums,
        IN=in_features,
        GROUP=group,
        BLOCK=power_of_two(group),
    )
    return rounded


def _rounding_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"x": pointer(dtype), "q": "*i8", "scales": "*fp32", "sums": "*i32"},
            {"IN": in_features, "GROUP": group, "BLOCK": power_of_two(group)},
        )
        for dtype in FLOATS
        for in_features in (1024, 2048, 3072, 4096, 14336)
        for group in (128, 512)
    ]


rounding = Kernel(round_kernel, _rounding_configurations)
