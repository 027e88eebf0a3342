"""Grouped products with adapters: a tile has tokens of one adapter, which is read once for all of them.

The columns of the input are cut into parts where there are few tiles; the second kernel adds them up in their order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.eager import lora as eager
from vllm_kernels.ops.lora import LoRAMetadata, LoRAWeights
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.lora_plan import most_tiles, plan_for, rows_of_tile

MOST_PARTS = 8
PART_COLUMNS = 256
"""A part has at least so many columns of the input."""


@triton.jit(do_not_specialize=["num_tokens", "num_adapters"])
def lora_shrink_kernel(
    x,
    a,
    ranks,
    order,
    tile_adapters,
    tile_first,
    tile_counts,
    low,
    x_stride,
    num_tokens,
    num_adapters,
    SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """``low[part, slice, token] = a[adapter, slice] @ x[token]`` over one part of the columns.

    One tile of tokens of an adapter, BLOCK_R of its ranks. ``low`` is fp32 ``[PARTS, SLICES, num_tokens, MAX_RANK]``.
    """
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    number = tl.program_id(1) // PARTS
    part = tl.program_id(1) % PARTS
    adapter = tl.load(tile_adapters + tile)
    count = tl.where((adapter >= 0) & (adapter < num_adapters), tl.load(tile_counts + tile), 0)
    row = tl.arange(0, BLOCK_M)
    token = tl.load(order + tl.load(tile_first + tile) + row, mask=row < count, other=-1).to(tl.int64)
    present = (token >= 0) & (token < num_tokens)
    which = tl.where(count > 0, adapter, 0).to(tl.int64) * SLICES + number
    rank = tl.where(count > 0, tl.load(ranks + which), 0)
    rank = tl.minimum(rank, MAX_RANK)
    line = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    known = line < rank

    SPAN: tl.constexpr = (IN + BLOCK_K * PARTS - 1) // (BLOCK_K * PARTS) * BLOCK_K
    begin = part * SPAN
    end = tl.minimum(begin + SPAN, IN)
    end = tl.where(rank > tl.program_id(2) * BLOCK_R, end, begin)
    total = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for at in range(begin, end, BLOCK_K):
        column = at + tl.arange(0, BLOCK_K)
        inside = column < IN
        values = tl.load(
            x + token[:, None] * x_stride + column[None, :], mask=present[:, None] & inside[None, :], other=0.0
        )
        factors = tl.load(
            a + (which * MAX_RANK + line)[None, :] * IN + column[:, None],
            mask=known[None, :] & inside[:, None],
            other=0.0,
        )
        total += tl.dot(values, factors, input_precision="ieee")
    place = ((part * SLICES + number).to(tl.int64) * num_tokens + token) * MAX_RANK
    tl.store(low + place[:, None] + line[None, :], total, mask=present[:, None] & known[None, :])


@triton.jit(do_not_specialize=["num_tokens", "num_adapters"])
def lora_expand_kernel(
    low,
    b,
    ranks,
    scales,
    slice_starts,
    order,
    tile_adapters,
    tile_first,
    tile_counts,
    out,
    out_stride,
    out_features,
    num_tokens,
    num_adapters,
    SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out[token] += scale * b[adapter] @ sum of low[:, slice, token]`` for BLOCK_N columns of one slice."""
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    number = tl.program_id(2)
    adapter = tl.load(tile_adapters + tile)
    count = tl.where((adapter >= 0) & (adapter < num_adapters), tl.load(tile_counts + tile), 0)
    row = tl.arange(0, BLOCK_M)
    token = tl.load(order + tl.load(tile_first + tile) + row, mask=row < count, other=-1).to(tl.int64)
    present = (token >= 0) & (token < num_tokens)
    adapter = tl.where(count > 0, adapter, 0).to(tl.int64)
    rank = tl.where(count > 0, tl.load(ranks + adapter * SLICES + number), 0)
    rank = tl.minimum(rank, MAX_RANK)
    begin = tl.load(slice_starts + number) + tl.program_id(1) * BLOCK_N
    end = tl.load(slice_starts + number + 1)
    rank = tl.where(begin < end, rank, 0)
    end = tl.where(rank > 0, end, begin)  # without a rank there is nothing to add: the result stays as it is
    column = begin + tl.arange(0, BLOCK_N)
    inside = column < end

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Few turns, mostly one: to prefetch all parts of the next would take more shared memory than there is.
    for at in tl.range(0, rank, BLOCK_R, num_stages=1):
        line = at + tl.arange(0, BLOCK_R)
        known = line < rank
        wanted = present[:, None] & known[None, :]
        values = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for part in tl.static_range(PARTS):
            place = ((part * SLICES + number).to(tl.int64) * num_tokens + token) * MAX_RANK
            values += tl.load(low + place[:, None] + line[None, :], mask=wanted, other=0.0)
        factors = tl.load(
            b + (adapter * out_features + column)[None, :] * MAX_RANK + line[:, None],
            mask=inside[None, :] & known[:, None],
            other=0.0,
        )
        total += tl.dot(values.to(factors.dtype), factors, input_precision="ieee")
    scale = tl.load(scales + adapter * SLICES + number)
    place = token[:, None] * out_stride + column[None, :]
    wanted = present[:, None] & inside[None, :]
    result = tl.load(out + place, mask=wanted, other=0.0).to(tl.float32) + scale * total
    tl.store(out + place, result.to(out.dtype.element_ty), mask=wanted)


@dataclass(frozen=True, slots=True)
class Shape:
    """How the two products are cut.

    Args:
        rows: tokens of a tile.
        ranks: of a tile of the first product, and of a turn of the loop of the second.
        columns: of a turn of the loop of the first product, and of a tile of the second.
        parts: of the input's columns.
    """

    rows: int
    ranks: tuple[int, int]
    columns: tuple[int, int]
    parts: int

    @classmethod
    def choose(
        cls,
        num_tokens: int,
        num_adapters: int,
        num_slices: int,
        max_rank: int,
        in_features: int,
        dtype: torch.dtype,
        processors: int,
    ) -> "Shape":
        """By the sizes alone, and not by which token has which adapter: a captured graph serves all of them."""
        rows = rows_of_tile(num_tokens)
        wide = dtype == torch.float32
        ranks = power_of_two(max_rank, 16)
        first = min(ranks, 64 if wide else 128)
        programs = most_tiles(num_tokens, num_adapters, rows) * num_slices * -(-max_rank // first)
        useful = min(2 * processors // max(programs, 1), in_features // PART_COLUMNS, MOST_PARTS)
        if batch_invariance.enabled():
            useful = 1
        parts = 1 << (max(useful, 1).bit_length() - 1)
        step = min(power_of_two(in_features, 16), 64 if wide or rows > 16 else 128)
        turn = min(ranks, 64 if rows == 16 else 32)
        return cls(rows, (first, turn), (step, 64 if wide or rows == 16 else 128), parts)

    def shrink(self, num_slices: int, max_rank: int, in_features: int) -> dict[str, int]:
        """Constants of the first kernel."""
        return {
            "SLICES": num_slices,
            "MAX_RANK": max_rank,
            "IN": in_features,
            "BLOCK_M": self.rows,
            "BLOCK_R": self.ranks[0],
            "BLOCK_K": self.columns[0],
            "PARTS": self.parts,
        }

    def expand(self, num_slices: int, max_rank: int, parts: int) -> dict[str, int]:
        """Constants of the second."""
        return {
            "SLICES": num_slices,
            "MAX_RANK": max_rank,
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns[1],
            "BLOCK_R": self.ranks[1],
            "PARTS": parts,
        }

    @property
    def warps(self) -> dict[str, int]:
        """Warps, and stages of the pipeline of loads, of both kernels."""
        return {"num_warps": 4 if self.rows == 16 else 8, "num_stages": 3}


def lora_shrink(x: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> torch.Tensor:
    if x.dtype not in FLOATS:
        return eager.lora_shrink(x, weights, metadata)
    if x.stride(1) != 1:
        x = x.contiguous()
    plan, shape, num_slices = plan_for(metadata, x.device), _shape(weights, metadata), len(weights.slice_sizes)
    low = x.new_empty(shape.parts, num_slices, len(x), weights.max_rank, dtype=torch.float32)
    shrink.launch(
        (plan.num_tiles, num_slices * shape.parts, -(-weights.max_rank // shape.ranks[0])),
        x,
        weights.a,
        weights.ranks,
        plan.order,
        plan.adapters,
        plan.first,
        plan.counts,
        low,
        x.stride(0),
        len(x),
        weights.num_adapters,
        **shape.shrink(num_slices, weights.max_rank, weights.in_features),
        **shape.warps,
    )
    return low


def lora_expand(out: torch.Tensor, low: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> None:
    if out.dtype not in FLOATS:
        eager.lora_expand(out, low, weights, metadata)
        return
    plan, shape, num_slices = plan_for(metadata, out.device), _shape(weights, metadata), len(weights.slice_sizes)
    expand.launch(
        (plan.num_tiles, -(-max(weights.slice_sizes) // shape.columns[1]), num_slices),
        low.contiguous(),
        weights.b,
        weights.ranks,
        weights.scales,
        weights.slice_starts,
        plan.order,
        plan.adapters,
        plan.first,
        plan.counts,
        out,
        out.stride(0),
        weights.out_features,
        len(out),
        weights.num_adapters,
        **shape.expand(num_slices, weights.max_rank, len(low)),
        **shape.warps,
    )


def _shape(weights: LoRAWeights, metadata: LoRAMetadata) -> Shape:
    return Shape.choose(
        len(metadata.adapters_host),
        weights.num_adapters,
        len(weights.slice_sizes),
        weights.max_rank,
        weights.in_features,
        weights.a.dtype,
        multiprocessors(weights.a.device),
    )


_LAYERS = ((3, 1024), (1, 2048), (2, 1024), (1, 3072), (3, 4096), (1, 4096), (2, 4096), (1, 14336))
"""Slices and columns of the projections of the Qwen 3 0.6B and the Llama 8B shapes."""

_STEPS = ((1, 4), (64, 4), (256, 1), (2048, 4))
"""Tokens of a step, and places for adapters."""


def _shapes() -> list[tuple[Shape, int, int, int, torch.dtype]]:
    return [
        (Shape.choose(*step, slices, rank, columns, dtype, 132), slices, rank, columns, dtype)
        for dtype in (torch.bfloat16, torch.float16)
        for rank in (8, 16, 32, 64, 128, 256)
        for slices, columns in _LAYERS
        for step in _STEPS
    ]


_INDICES = dict.fromkeys(("order", "tile_adapters", "tile_first", "tile_counts"), "*i32")


def _shrink_configurations(family: str) -> list[Configuration]:
    found = []
    for shape, slices, rank, columns, dtype in _shapes():
        types: dict[str, str | None] = {"x": pointer(dtype), "a": pointer(dtype), "ranks": "*i32", **_INDICES}
        types |= {"low": "*fp32", **dict.fromkeys(("x_stride", "num_tokens", "num_adapters"), "i32")}
        found.append(Configuration(types, shape.shrink(slices, rank, columns), **shape.warps))
    return list({configuration.label: configuration for configuration in found}.values())


def _expand_configurations(family: str) -> list[Configuration]:
    found = []
    for shape, slices, rank, _, dtype in _shapes():
        types: dict[str, str | None] = {"low": "*fp32", "b": pointer(dtype), "ranks": "*i32", "scales": "*fp32"}
        types |= {"slice_starts": "*i32", **_INDICES, "out": pointer(dtype)}
        types |= dict.fromkeys(("out_stride", "out_features", "num_tokens", "num_adapters"), "i32")
        found.append(Configuration(types, shape.expand(slices, rank, shape.parts), **shape.warps))
    return list({configuration.label: configuration for configuration in found}.values())


shrink = Kernel(lora_shrink_kernel, _shrink_configurations)
expand = Kernel(lora_expand_kernel, _expand_configurations)
