"""One program's search of candidates, or of a whole row, for the place where a number or a weight ends."""

import triton
import triton.language as tl

from vllm_kernels.triton.sampling_row import (
    HIGHEST_PLACE,
    IMPOSSIBLE_KEY,
    LOWEST_PLACE,
    key_of,
    place_of,
    value_of,
    weight_of,
)


@triton.jit
def look(logits, candidates, start, end, direct, size, STRIDE: tl.constexpr):
    """STRIDE of the candidates from ``start`` on, or if ``direct`` (or there are none) of the row's places."""
    i = start + tl.arange(0, STRIDE)
    x = tl.load(logits + i, mask=i < tl.where(direct, size, 0), other=float("-inf"))
    place = tl.where(i < size, place_of(key_of(x), i), LOWEST_PLACE)
    if candidates is not None:
        listed = tl.load(candidates + i, mask=i < tl.where(direct, 0, end), other=LOWEST_PLACE)
        place = tl.where(direct, place, listed)
    return place


@triton.jit
def weights_at(place, largest, scale, WEIGHED: tl.constexpr):
    """1 each, or weights."""
    if WEIGHED:
        key = tl.maximum(place >> 32, IMPOSSIBLE_KEY)  # there need not be a token
        weight = weight_of(value_of(key.to(tl.int32)), largest, scale)
    else:
        weight = tl.zeros_like(place) + 1
    return weight


@triton.jit
def tell(place, weight, high, middle):
    """The weight of places in ``[middle, high]``, the least of them, and the largest place below."""
    above = (place >= middle) & (place <= high)
    reached = tl.sum(tl.where(above, weight, 0), axis=0)
    least = tl.min(tl.where(above, place, HIGHEST_PLACE), axis=0)
    return reached, least, tl.max(tl.where(place < middle, place, LOWEST_PLACE), axis=0)


@triton.jit
def survey(
    logits,
    candidates,
    end,
    direct,
    size,
    high,
    middle,
    largest,
    scale,
    STRIDE: tl.constexpr,
    WEIGHED: tl.constexpr,
):
    """``tell`` of the first ``end`` candidates, or if ``direct`` of the whole row."""
    reached = middle * 0
    least = reached + HIGHEST_PLACE
    most = reached + LOWEST_PLACE
    for start in range(0, end, STRIDE):
        place = look(logits, candidates, start, end, direct, size, STRIDE)
        here, least_here, most_here = tell(place, weights_at(place, largest, scale, WEIGHED), high, middle)
        reached += here
        least = tl.minimum(least, least_here)
        most = tl.maximum(most, most_here)
    return reached, least, most


@triton.jit
def find(
    logits,
    candidates,
    end,
    direct,
    size,
    low,
    high,
    wanted,
    largest,
    scale,
    STRIDE: tl.constexpr,
    WEIGHED: tl.constexpr,
):
    """The last of the fewest places up to ``high``, largest first, that weigh ``wanted`` or are as many.

    ``low`` if all above it are fewer.
    """
    first = low
    last = high
    if end <= STRIDE:
        # Few enough to stay in registers.
        place = look(logits, candidates, 0, end, direct, size, STRIDE)
        weight = weights_at(place, largest, scale, WEIGHED)
        while first < last:
            middle = (first | last) - ((first ^ last) >> 1)  # of the two, rounded up
            reached, least, most = tell(place, weight, high, middle)
            first = tl.where(reached >= wanted, least, first)
            last = tl.where(reached >= wanted, last, most)
    else:
        while first < last:
            middle = (first | last) - ((first ^ last) >> 1)
            reached, least, most = survey(
                logits, candidates, end, direct, size, high, middle, largest, scale, STRIDE, WEIGHED
            )
            first = tl.where(reached >= wanted, least, first)
            last = tl.where(reached >= wanted, last, most)
    return first
