"""Activations to 8 bits, with a scale for each row and group of columns, see ``ops.quantization``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.dependent_launch import wait_for_earlier
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


ENTRIES = 2048
"""Of a program: groups that have fewer are so many to a program as have as many together."""


@triton.jit(do_not_specialize=["num_groups"])
def round_kernel(
    x,
    q,
    scales,
    sums,
    num_groups,
    IN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
    PDL: tl.constexpr,
):
    """COUNT of the ``num_groups`` groups of all rows, each: ``q = round(x * (127 / max|x|))``, ties to even; zeros and
    a scale of NaN for one with an infinity or NaN.
    """
    wait_for_earlier(PDL)
    GROUPS: tl.constexpr = (IN + GROUP - 1) // GROUP
    group = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    known = group < num_groups
    place = tl.arange(0, BLOCK)
    column = (group % GROUPS * GROUP)[:, None] + place[None, :]
    entry = (group // GROUPS * IN)[:, None] + column
    present = known[:, None] & (place < GROUP)[None, :]
    if IN % GROUP != 0:
        present = present & (column < IN)
    values = tl.load(x + entry, mask=present, other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(values), axis=1)
    scale = scale_of(peak, tl.sum(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=1), 127.0)
    zeros = tl.zeros_like(values)
    units = units_of(values, peak[:, None] + zeros, scale[:, None] + zeros, False, 127.0).to(tl.int32)
    tl.store(q + entry, units.to(tl.int8), mask=present)
    tl.store(scales + group, scale, mask=known)
    tl.store(sums + group, tl.sum(units, axis=1), mask=known)


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
    constants = _constants(in_features, group)
    num_groups = num_rows * groups
    rounding.launch(
        (-(-num_groups // constants["COUNT"]),), x, rounded.q, rounded.scales, rounded.sums, num_groups, **constants
    )
    return rounded


def _constants(in_features: int, group: int) -> dict[str, int]:
    block = power_of_two(group)
    return {"IN": in_features, "GROUP": group, "BLOCK": block, "COUNT": max(1, ENTRIES // block)}


def _rounding_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"x": pointer(dtype), "q": "*i8", "scales": "*fp32", "sums": "*i32", "num_groups": "i32"},
            _constants(in_features, group),
        )
        for dtype in FLOATS
        for in_features in (1024, 2048, 3072, 4096, 14336)
        for group in (128, 512)
    ]


rounding = Kernel(round_kernel, _rounding_configurations)
