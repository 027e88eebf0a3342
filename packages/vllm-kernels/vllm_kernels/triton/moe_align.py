"""Which rows a program of the grouped product has: (token, expert) pairs, sorted by expert, in blocks of one expert.

A pair is ``token * top_k + column``. Its place is a count: of pairs before it with the same expert, after the blocks of
the experts before. Nothing is added by several programs, so the order is the same every time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vllm_kernels.expert_weight import Routing
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel, power_of_two

CHUNK = 256
"""Pairs whose places one program finds."""
STEP = 32
"""Pairs that these are compared with at a time."""
FEW = (64, 512)
"""Pairs up to which one program does it all, of a single launch."""
BLOCKS = 32
"""Blocks that are told their expert at a time."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of a grouped product.

    Args:
        pairs: int32 ``[count * block_m]``: row ``i`` of block ``b`` is pair ``pairs[b * block_m + i]``; undefined from
            the block's number of rows on.
        experts: int32 ``[count]``: that of each block, -1 for one that is not needed.
        rows: int32 ``[count]``: how many each block has.
        block_m: rows of a full one.
    """

    pairs: torch.Tensor
    experts: torch.Tensor
    rows: torch.Tensor
    block_m: int

    @property
    def count(self) -> int:
        """As many as any routing may need: the device alone knows how many it does."""
        return len(self.experts)


@triton.jit
def expert_of(experts, pair, num_pairs, EXPERTS: tl.constexpr):
    """The expert of each pair, EXPERTS where there is none."""
    expert = tl.load(experts + pair, mask=pair < num_pairs, other=EXPERTS)
    return tl.where((expert >= 0) & (expert < EXPERTS), expert, EXPERTS)


@triton.jit
def rank_of(experts, expert, first_pair, num_pairs, EXPERTS: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr):
    """For each of CHUNK pairs from ``first_pair`` on: how many before it have its expert, counted STEP at a time."""
    index = tl.arange(0, CHUNK)
    rank = tl.zeros([CHUNK], tl.int32)
    for first in range(0, CHUNK, STEP):
        other = first + tl.arange(0, STEP)
        its_expert = expert_of(experts, first_pair + other, num_pairs, EXPERTS)
        before = (expert[:, None] == its_expert[None, :]) & (other[None, :] < index[:, None])
        rank += tl.sum(before.to(tl.int32), axis=1)
    return rank


@triton.jit
def tell_blocks(
    block_experts,
    block_rows,
    total,
    begin,
    end,
    num_blocks,
    BINS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Expert and rows of each block, from pairs and first and last blocks of each expert (``[BINS]``)."""
    bin = tl.arange(0, BINS)
    for first in range(0, num_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        own = (begin[None, :] <= block[:, None]) & (block[:, None] < end[None, :])
        rows = tl.sum(tl.where(own, total[None, :] - (block[:, None] - begin[None, :]) * BLOCK_M, 0), axis=1)
        expert = tl.sum(tl.where(own, bin[None, :] + 1, 0), axis=1) - 1
        tl.store(block_experts + block, expert, mask=block < num_blocks)
        tl.store(block_rows + block, tl.minimum(rows, BLOCK_M), mask=block < num_blocks)


@triton.jit(do_not_specialize=["num_pairs"])
def expert_count_kernel(
    experts, counts, num_pairs, EXPERTS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr
):
    """Pairs of each expert in one chunk: ``counts`` ``[chunks, BINS]``."""
    wait_for_earlier(PDL)
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    found = tl.histogram(expert_of(experts, pair, num_pairs, EXPERTS), BINS)
    tl.store(counts + chunk.to(tl.int64) * BINS + tl.arange(0, BINS), found)


@triton.jit(do_not_specialize=["num_chunks", "num_blocks"])
def expert_start_kernel(
    counts,
    starts,
    block_experts,
    block_rows,
    num_chunks,
    num_blocks,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: the first place of each chunk's pairs of each expert, and the expert and rows of each block."""
    wait_for_earlier(PDL)
    bin = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int32)
    for first in range(0, num_chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        place = chunk[:, None].to(tl.int64) * BINS + bin[None, :]
        total += tl.sum(tl.load(counts + place, mask=(chunk < num_chunks)[:, None], other=0), axis=0)
    total = tl.where(bin < EXPERTS, total, 0)
    needed = (total + BLOCK_M - 1) // BLOCK_M
    end = tl.cumsum(needed, axis=0)
    begin = end - needed
    place_of_next = begin * BLOCK_M
    for first in range(0, num_chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        place = chunk[:, None].to(tl.int64) * BINS + bin[None, :]
        here = (chunk < num_chunks)[:, None]
        found = tl.load(counts + place, mask=here, other=0)
        tl.store(starts + place, place_of_next[None, :] + tl.cumsum(found, axis=0) - found, mask=here)
        place_of_next += tl.sum(found, axis=0)
    tell_blocks(block_experts, block_rows, total, begin, end, num_blocks, BINS, BLOCK_M, BLOCKS)


@triton.jit(do_not_specialize=["num_pairs", "num_places"])
def expert_place_kernel(
    experts,
    starts,
    pairs,
    num_pairs,
    num_places,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    PDL: tl.constexpr,
):
    """The pairs of one chunk go to their places."""
    wait_for_earlier(PDL)
    chunk = tl.program_id(0)
    pair = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = expert_of(experts, pair, num_pairs, EXPERTS)
    rank = rank_of(experts, expert, chunk * CHUNK, num_pairs, EXPERTS, CHUNK, STEP)
    known = expert < EXPERTS
    place = tl.load(starts + chunk.to(tl.int64) * BINS + expert, mask=known, other=0) + rank
    tl.store(pairs + place, pair, mask=known & (place < num_places))


@triton.jit(do_not_specialize=["num_pairs", "num_blocks", "num_places"])
def expert_align_kernel(
    experts,
    pairs,
    block_experts,
    block_rows,
    num_pairs,
    num_blocks,
    num_places,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """All of the three in one program, for one chunk."""
    wait_for_earlier(PDL)
    pair = tl.arange(0, CHUNK)
    expert = expert_of(experts, pair, num_pairs, EXPERTS)
    total = tl.where(tl.arange(0, BINS) < EXPERTS, tl.histogram(expert, BINS), 0)
    needed = (total + BLOCK_M - 1) // BLOCK_M
    end = tl.cumsum(needed, axis=0)
    begin = end - needed
    rank = rank_of(experts, expert, 0, num_pairs, EXPERTS, CHUNK, STEP)
    place = tl.gather(begin * BLOCK_M, expert, 0) + rank
    tl.store(pairs + place, pair, mask=(expert < EXPERTS) & (place < num_places))
    tell_blocks(block_experts, block_rows, total, begin, end, num_blocks, BINS, BLOCK_M, BLOCKS)


def align(routing: Routing, num_experts: int, block_m: int) -> Blocks:
    """Blocks of ``block_m`` rows for the pairs of a routing."""
    experts = routing.experts.contiguous()
    num_pairs = experts.numel()
    num_blocks = most_blocks(num_pairs, num_experts, block_m)
    bins = power_of_two(num_experts + 1)
    blocks = Blocks(
        experts.new_empty(num_blocks * block_m), experts.new_empty(num_blocks), experts.new_empty(num_blocks), block_m
    )
    sizes = {"EXPERTS": num_experts, "BINS": bins}
    if num_pairs <= FEW[-1]:
        few = next(few for few in FEW if num_pairs <= few)
        align_few.launch(
            (min(num_pairs, 1),),
            experts,
            blocks.pairs,
            blocks.experts,
            blocks.rows,
            num_pairs,
            num_blocks,
            len(blocks.pairs),
            **sizes,
            BLOCK_M=block_m,
            CHUNK=few,
            STEP=STEP,
            BLOCKS=BLOCKS,
            num_warps=_warps(few),
        )
        return blocks
    num_chunks = -(-num_pairs // CHUNK)
    counts, starts = experts.new_empty(2, num_chunks, bins)
    count.launch((num_chunks,), experts, counts, num_pairs, **sizes, CHUNK=CHUNK)
    start.launch(
        (1,),
        counts,
        starts,
        blocks.experts,
        blocks.rows,
        num_chunks,
        num_blocks,
        **sizes,
        BLOCK_M=block_m,
        CHUNKS=_chunks(bins),
        BLOCKS=BLOCKS,
        num_warps=8,
    )
    place.launch(
        (num_chunks,),
        experts,
        starts,
        blocks.pairs,
        num_pairs,
        len(blocks.pairs),
        **sizes,
        CHUNK=CHUNK,
        STEP=STEP,
    )
    return blocks


def most_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Blocks that a routing may need: one for each pair, or full ones and a part of one for each expert."""
    return min(num_pairs, (num_pairs + num_experts * (block_m - 1)) // block_m)


def _warps(few: int) -> int:
    """Of the program that does it all."""
    return 4 if few <= 64 else 8


def _chunks(bins: int) -> int:
    """Chunks that are added up at a time."""
    return min(64, max(1, 8192 // bins))


EXPERTS = (8, 32, 60, 64, 128, 160, 256)
"""Of models."""


def _count_configurations(family: str) -> list[Configuration]:
    return [
        Configuration({"experts": "*i32", "counts": "*i32", "num_pairs": "i32"}, {**_sizes(number), "CHUNK": CHUNK})
        for number in EXPERTS
    ]


def _start_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = dict.fromkeys(("counts", "starts", "block_experts", "block_rows"), "*i32")
    types |= {"num_chunks": "i32", "num_blocks": "i32"}
    return [
        Configuration(
            types,
            {**_sizes(number), "BLOCK_M": block_m, "CHUNKS": _chunks(_sizes(number)["BINS"]), "BLOCKS": BLOCKS},
            num_warps=8,
        )
        for number in EXPERTS
        for block_m in (16, 32, 64, 128)
    ]


def _place_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = dict.fromkeys(("experts", "starts", "pairs"), "*i32")
    types |= {"num_pairs": "i32", "num_places": "i32"}
    return [Configuration(types, {**_sizes(number), "CHUNK": CHUNK, "STEP": STEP}) for number in EXPERTS]


def _few_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = dict.fromkeys(("experts", "pairs", "block_experts", "block_rows"), "*i32")
    types |= dict.fromkeys(("num_pairs", "num_blocks", "num_places"), "i32")
    return [
        Configuration(
            types,
            {**_sizes(number), "BLOCK_M": block_m, "CHUNK": few, "STEP": STEP, "BLOCKS": BLOCKS},
            num_warps=_warps(few),
        )
        for number in EXPERTS
        for block_m in (16, 32, 64, 128)
        for few in FEW
    ]


def _sizes(num_experts: int) -> dict[str, int]:
    return {"EXPERTS": num_experts, "BINS": power_of_two(num_experts + 1)}


count = Kernel(expert_count_kernel, _count_configurations)
start = Kernel(expert_start_kernel, _start_configurations)
place = Kernel(expert_place_kernel, _place_configurations)
align_few = Kernel(expert_align_kernel, _few_configurations)
