"""One turn of the loop over keys of attention. For kernels to call."""

import triton
import triton.language as tl

from vllm_kernels.triton.cache import from_entry

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def entries_of(table, at, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where a sequence's row ``table`` of the block table has the blocks of the BLOCK_N keys from ``at`` on, a multiple
    of BLOCK_N; and which of its block's keys each is.
    """
    key = tl.arange(0, BLOCK_N)
    if BLOCK_N % BLOCK_SIZE == 0:  # a turn begins with a block, and where its keys are in theirs is always the same
        entry = table + at // BLOCK_SIZE + key // BLOCK_SIZE
        in_block = key % BLOCK_SIZE
    else:
        entry = table + (at + key) // BLOCK_SIZE
        in_block = (at + key) % BLOCK_SIZE
    return entry, in_block


@triton.jit
def attend_to_keys(
    largest,
    total,
    sum_of_values,
    sum_of_odds,
    q,
    at,
    table,
    num_blocks,
    kv_head,
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    slope,
    position,
    first_seen,
    last_seen,
    low,
    end,
    scale,
    soft_cap,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAPPED: tl.constexpr,
    PAIRS: tl.constexpr,
    SEEN_BY_ALL: tl.constexpr,
):
    """One turn of an online softmax: the state of ``q``'s rows with the BLOCK_N keys from ``at`` on.

    Returns ``largest`` (of the scores times LOG2E, ``[BLOCK_M]``), ``total`` of the weights ``[BLOCK_M]`` and
    ``sum_of_values`` ``[BLOCK_M, BLOCK_D]``; with PAIRS, that of the even columns and ``sum_of_odds``, of half as many
    columns each. ``scale`` is positive, ``slope`` is of ALiBi, times LOG2E. ``table`` is the sequence's row of the
    block table; what lies outside the cache reads as zeros. Without SEEN_BY_ALL a row sees keys ``first_seen`` to
    ``last_seen``, and none before ``low`` or from ``end`` on is read.
    """
    key_position = at + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_DIM
    entry, in_block = entries_of(table, at, BLOCK_N, BLOCK_SIZE)
    if SEEN_BY_ALL:
        block = tl.load(entry)
    else:
        wanted = (key_position >= low) & (key_position < end)
        block = tl.load(entry, mask=wanted, other=-1)
    present = block.to(tl.uint32, bitcast=True) < num_blocks
    block = block.to(tl.int64)
    in_block += kv_head * BLOCK_SIZE
    slot = block * (HEADS * BLOCK_SIZE) + in_block
    place = block * (HEADS * BLOCK_SIZE * HEAD_DIM) + in_block * HEAD_DIM  # of its first entry
    keys = tl.load(key_cache + place[None, :] + column[:, None], mask=present[None, :] & in_head[:, None], other=0.0)
    score = tl.dot(q, from_entry(keys, q.dtype), input_precision="ieee")
    if key_scale is not None:
        score = score * tl.load(key_scale + slot, mask=present, other=0.0)[None, :]
    # Scores are times LOG2E, for exp2: by one multiplication with what else they are times, and that after the largest.
    factor = scale * LOG2E
    if CAPPED:
        score = score * (scale * 2.0 / soft_cap)
        score = (soft_cap * LOG2E) * (2.0 * tl.sigmoid(score) - 1.0)  # soft_cap * tanh(score / soft_cap)
        factor = 1.0
    if slope is not None:
        score = score * factor + slope[:, None] * (key_position[None, :] - position[:, None]).to(tl.float32)
        factor = 1.0
    if not SEEN_BY_ALL:
        seen = (key_position[None, :] >= first_seen[:, None]) & (key_position[None, :] <= last_seen[:, None])
        score = tl.where(seen, score, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(score, axis=1) * factor)
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weight = tl.exp2(score * factor - base[:, None])
    kept = tl.exp2(largest - base)
    total = total * kept + tl.sum(weight, axis=1)
    if value_scale is not None:
        weight = weight * tl.load(value_scale + slot, mask=present, other=0.0)[None, :]
    # Weights are at most 1, and fp16 holds entries of fp8 as exactly as bf16, which takes more instructions to make.
    IN_HALF: tl.constexpr = q.dtype == tl.bfloat16 and value_scale is None and value_cache.dtype.element_ty.is_fp8()
    KIND: tl.constexpr = tl.float16 if IN_HALF else q.dtype
    weight = weight.to(KIND)
    sum_of_values = sum_of_values * kept[:, None]
    if PAIRS:
        pair = tl.arange(0, BLOCK_D // 2)
        place_of_pairs = block * (HEADS * BLOCK_SIZE * HEAD_DIM // 2) + in_block * (HEAD_DIM // 2)
        pairs = tl.load(
            value_cache.to(tl.pointer_type(tl.uint16)) + place_of_pairs[:, None] + pair[None, :],
            mask=present[:, None] & (pair < HEAD_DIM // 2)[None, :],
            other=0,
        )
        evens = (pairs & 0xFF).to(tl.uint8).to(value_cache.dtype.element_ty, bitcast=True)
        odds = (pairs >> 8).to(tl.uint8).to(value_cache.dtype.element_ty, bitcast=True)
        sum_of_values = tl.dot(weight, from_entry(evens, KIND), sum_of_values, input_precision="ieee")
        sum_of_odds = sum_of_odds * kept[:, None]
        sum_of_odds = tl.dot(weight, from_entry(odds, KIND), sum_of_odds, input_precision="ieee")
    else:
        values = tl.load(
            value_cache + place[:, None] + column[None, :],
            mask=present[:, None] & in_head[None, :],
            other=0.0,
        )
        sum_of_values = tl.dot(weight, from_entry(values, KIND), sum_of_values, input_precision="ieee")
    return new_largest, total, sum_of_values, sum_of_odds
