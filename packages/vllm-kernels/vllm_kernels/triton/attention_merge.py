"""The results of a token whose keys were cut into parts become one: the second kernel of attention."""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.attention_plan import MOST_PROMPT_SPLITS, MOST_SPLITS
from vllm_kernels.triton.attention_turn import LOG2E
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel, pointer, power_of_two


@triton.jit(do_not_specialize=["part_tokens", "num_parts"])
def merge_kernel(
    part_out,
    part_max,
    part_sum,
    part_starts,
    query_start_loc,
    tile_seq,
    tile_first,
    sinks,
    out,
    part_tokens,
    num_parts,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the parts (at most SPLITS) of one token and head: each was weighted relative to the largest score that it
    saw itself."""
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    local = tl.load(tile_first + tile) + tl.program_id(1) % TOKENS
    head = tl.program_id(1) // TOKENS
    seq = tl.load(tile_seq + tile)
    start = tl.load(query_start_loc + seq)
    valid = local < tl.load(query_start_loc + seq + 1) - start
    token = (start + local).to(tl.int64)
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, BLOCK_D)
    in_head = column < tl.where(valid, HEAD_DIM, 0)
    present = split < tl.where(valid, num_parts, 0)
    part_token = tl.load(part_starts + seq).to(tl.int64) + local
    state = (split.to(tl.int64) * part_tokens + part_token) * NUM_HEADS + head
    largest_of_part = tl.load(part_max + state, mask=present, other=float("-inf"))
    total_of_part = tl.load(part_sum + state, mask=present, other=0.0)
    largest = tl.max(largest_of_part, axis=0)
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        largest = tl.maximum(largest, sink)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    factor = tl.exp2(largest_of_part - base)
    total = tl.sum(total_of_part * factor, axis=0)
    if sinks is not None:
        total += tl.exp2(sink - base)
    parts = tl.load(
        part_out + state[:, None] * HEAD_DIM + column[None, :], mask=present[:, None] & in_head[None, :], other=0.0
    )
    result = tl.sum(parts * factor[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (token * NUM_HEADS + head) * HEAD_DIM + column, result.to(out.dtype.element_ty), mask=in_head)


def _merge_configurations(family: str) -> list[Configuration]:
    found = []
    splits = [2**power for power in range(1, MOST_SPLITS.bit_length())]
    for dtype in (torch.bfloat16, torch.float16):
        # The last two are latents (mla.py), which have no sinks.
        for heads, head_dim in (*((32, dim) for dim in (64, 80, 96, 128, 192, 256)), (16, 512), (128, 512)):
            # Few rows of four tokens; and prompts of 32, whose parts are always merged as if they were the most.
            merged = [(4, count) for count in splits] + ([(32, MOST_PROMPT_SPLITS)] if head_dim <= 256 else [])
            for tokens, count in merged:
                for sinks in (False, True) if head_dim <= 256 else (False,):
                    kind = pointer(dtype)
                    types: dict[str, str | None] = dict.fromkeys(("part_out", "part_max", "part_sum"), "*fp32")
                    types |= dict.fromkeys(("part_starts", "query_start_loc", "tile_seq", "tile_first"), "*i32")
                    types |= {"sinks": kind if sinks else None, "out": kind, "part_tokens": "i32", "num_parts": "i32"}
                    constants = {
                        "NUM_HEADS": heads,
                        "HEAD_DIM": head_dim,
                        "BLOCK_D": power_of_two(head_dim, 16),
                        "TOKENS": tokens,
                        "SPLITS": count,
                    }
                    found.append(Configuration(types, constants))
    return found


merge = Kernel(merge_kernel, _merge_configurations)
