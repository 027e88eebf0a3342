"""Where in a row of logits its cut may be: a *bracket* of keys, and what lies above it (see ``sampling_cut.py``)."""

import triton
import triton.language as tl

from vllm_kernels.triton.sampling_row import key_of, value_of

WAYS = 16
"""Keys that a bracket is divided by."""
CANDIDATES = 8192
"""Logits that may be gathered of a row; rows that have no more are searched as they are."""
FILTERS = ({"top_k": "*i64", "top_p": "*fp64"}, {"top_k": None, "top_p": None})
"""Types of what a row's filters come in: those of a draw, or none, where the most likely are looked for."""

# Fields of a bracket: the cut's key is in [LOW, HIGH). ABOVE: what has keys of at least HIGH.
LOW = tl.constexpr(0)
HIGH = tl.constexpr(1)
TOTAL = tl.constexpr(2)
ABOVE_COUNT = tl.constexpr(3)
ABOVE_MASS = tl.constexpr(4)
HELD = tl.constexpr(5)
LIMITED = tl.constexpr(6)
BRACKET = tl.constexpr(8)


@triton.jit
def limits_of(row, top_k, top_p, k):
    """How many tokens (0: all), and what share of the probability, a row keeps."""
    if top_k is None:
        limit = row * 0 + k
        share = (row * 0 + 1).to(tl.float64)
    else:
        limit = tl.load(top_k + row)
        share = tl.load(top_p + row)
    return limit, share


@triton.jit
def weight_for_share(share, total):
    """The least weight that is ``share`` of ``total``."""
    return tl.minimum(tl.maximum(tl.ceil(share * total.to(tl.float64)).to(tl.int64), 1), total)


@triton.jit
def narrowed(
    low,
    high,
    total,
    above_count,
    above_mass,
    limited,
    limit,
    share,
    thresholds,
    counts,
    masses,
    row,
    num_parts,
    WAYS: tl.constexpr,
    PARTS: tl.constexpr,
    FIRST: tl.constexpr,
    RANKED: tl.constexpr,
):
    """The bracket that follows from what ``sections_kernel`` found in one, without HELD; and what it holds.

    It is the same in all programs of a row, as nothing but integers is added.
    """
    way = tl.arange(0, WAYS)
    part = tl.arange(0, PARTS)
    offsets = (row * num_parts + part)[:, None] * WAYS + way[None, :]
    present = (part < num_parts)[:, None] & (way < WAYS)[None, :]
    count = tl.sum(tl.load(counts + offsets, mask=present, other=0).to(tl.int64), axis=0)
    keys = tl.load(thresholds + row * WAYS + way).to(tl.int64)
    last = way == WAYS - 1
    if FIRST:
        limited = tl.where(tl.sum(tl.where(last, count, 0), axis=0) > limit, limited, 0)
    if RANKED:
        reached = count >= limit
        mass = count
    else:
        mass = tl.sum(tl.load(masses + offsets, mask=present, other=0), axis=0)
        if FIRST:
            total = tl.sum(tl.where(last, mass, 0), axis=0)
        reached = tl.where(limited != 0, count, mass) >= tl.where(limited != 0, limit, weight_for_share(share, total))
    at = tl.min(tl.where(reached, way, WAYS - 1), axis=0)
    low = tl.sum(tl.where(way == at, keys, 0), axis=0)
    inside = tl.sum(tl.where(way == at, count, 0), axis=0)
    high = tl.where(at > 0, tl.sum(tl.where(way == at - 1, keys, 0), axis=0), high)
    above_count = tl.where(at > 0, tl.sum(tl.where(way == at - 1, count, 0), axis=0), above_count)
    above_mass = tl.where(at > 0, tl.sum(tl.where(way == at - 1, mass, 0), axis=0), above_mass)
    # All that is kept is wanted in the end where it is ranked, or filtered again by its weight.
    whole = limited != 0
    if not RANKED:
        whole = whole & (share < 1.0)
    held = tl.where(whole, inside, inside - above_count)
    return low, high, total, above_count, above_mass, limited, held


@triton.jit
def section_keys(low, high, floor, best, spread, WAYS: tl.constexpr):
    """Keys that divide a bracket, largest first and ``low`` last.

    Evenly spread values; but where it has no end below, ones whose distances to the largest logit grow by the root of
    2, first from a fraction of the distance between the parts' largest.
    """
    way = tl.arange(0, WAYS)
    top = value_of(best.to(tl.int32))
    upper = value_of(tl.minimum(high, best).to(tl.int32))
    lower = value_of(low.to(tl.int32))
    near = tl.where(high > best, spread * 0.044, top - upper)
    far = top - near * tl.exp2(0.5 * (way + 1).to(tl.float32))
    even = lower + (upper - lower) * ((WAYS - 1 - way).to(tl.float32) / WAYS)
    keys = key_of(tl.where(low == floor, far, even)).to(tl.int64)
    return tl.where(way == WAYS - 1, low, tl.minimum(tl.maximum(keys, low), high))


@triton.jit
def load_bracket(bracket):
    return (
        tl.load(bracket + LOW),
        tl.load(bracket + HIGH),
        tl.load(bracket + TOTAL),
        tl.load(bracket + ABOVE_COUNT),
        tl.load(bracket + ABOVE_MASS),
        tl.load(bracket + LIMITED),
        tl.load(bracket + HELD),
    )


@triton.jit
def store_bracket(bracket, low, high, total, above_count, above_mass, limited, held):
    tl.store(bracket + LOW, low)
    tl.store(bracket + HIGH, high)
    tl.store(bracket + TOTAL, total)
    tl.store(bracket + ABOVE_COUNT, above_count)
    tl.store(bracket + ABOVE_MASS, above_mass)
    tl.store(bracket + LIMITED, limited)
    tl.store(bracket + HELD, held)
