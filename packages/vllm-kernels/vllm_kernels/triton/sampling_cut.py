"""Where the filters of a row end: the *cut*, the last place (``sampling_row.py``) that they keep.

Rows of a large vocabulary are searched by many programs at first. Twice, WAYS keys divide what is left, and what lies
above each is counted and weighed (``sections_kernel``): of evenly spread logits, a few thousand lie between the two
keys that are left. These candidates are gathered, and one program halves them until the cut is found
(``cut_kernel``); without enough luck it goes through the whole row instead, which is only slower.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.sampling_row import (
    ANY,
    BEST,
    FIELDS,
    FLOOR,
    HIGHEST_PLACE,
    IMPOSSIBLE_KEY,
    LOWEST_PLACE,
    MODE,
    PART,
    PARTS,
    WARPS,
    Rows,
    RowStates,
    key_of,
    place_of,
    value_of,
    weight_of,
)

WAYS = 16
CHUNK = 256
"""Columns that a program of ``sections_kernel`` looks at together."""
CANDIDATES = 8192
"""Logits that may be gathered of a row; rows that have no more are searched as they are."""
STRIDE = 2048
"""Of them, those that a program of ``cut_kernel`` looks at together."""
LARGEST_RANKED = 1024

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


@triton.jit
def sections_kernel(
    logits,
    state,
    scales,
    top_k,
    top_p,
    thresholds_before,
    counts_before,
    masses_before,
    bracket,
    thresholds,
    counts,
    masses,
    num_candidates,
    k,
    size,
    num_parts,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    CHUNK: tl.constexpr,
    WAYS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """How many logits of a part lie above each of WAYS keys, and their weight: ``[num_rows, num_parts, WAYS]``.

    In the first pass over a row (there are no ``*_before``) of the whole row, in the second of the bracket that the
    first leaves, which goes to ``bracket [num_rows, BRACKET]``, unless it holds few enough already. Without ``top_k``
    the ``k`` most likely are looked for, and no weights.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    FIRST: tl.constexpr = counts_before is None
    RANKED: tl.constexpr = top_k is None
    own = state + row * FIELDS
    limit, share = limits_of(row, top_k, top_p, k)
    wanted = (limit > 0) & (limit < size)
    limited = wanted.to(tl.int64)
    if not RANKED:
        wanted = (tl.load(own + MODE) == ANY) & (wanted | (share < 1.0))
    best = tl.load(own + BEST)
    floor = tl.load(own + FLOOR)
    low = floor
    high = best + 1
    nothing = row * 0
    held = nothing + size
    if FIRST:
        if part == 0:
            tl.store(num_candidates + row, 0)
    else:
        if wanted:
            low, high, total, above_count, above_mass, limited, held = narrowed(
                low,
                high,
                nothing,
                nothing,
                nothing,
                limited,
                limit,
                share,
                thresholds_before,
                counts_before,
                masses_before,
                row,
                num_parts,
                WAYS,
                PARTS,
                True,
                RANKED,
            )
            if part == 0:
                store_bracket(bracket + row * BRACKET, low, high, total, above_count, above_mass, limited, held)
        wanted = wanted & (held > CANDIDATES)
    if wanted:
        keys = section_keys(low, high, floor, best, tl.load(scales + 2 * row + 1), WAYS)
        way = tl.arange(0, WAYS)
        if part == 0:
            tl.store(thresholds + row * WAYS + way, keys.to(tl.int32))
        largest = value_of(best.to(tl.int32))
        scale = tl.load(scales + 2 * row)
        count = tl.zeros([WAYS, CHUNK], tl.int32)
        mass = tl.zeros([WAYS, CHUNK], tl.int64)
        for start in range(part * PART, tl.minimum(part * PART + PART, size), CHUNK):
            column = start + tl.arange(0, CHUNK)
            x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
            key = key_of(x).to(tl.int64)
            above = (key[None, :] >= keys[:, None]) & (column < size)[None, :]
            count += above.to(tl.int32)
            if not RANKED:
                mass += tl.where(above, weight_of(x, largest, scale)[None, :], 0)
        place = (row * num_parts + part) * WAYS + way
        tl.store(counts + place, tl.sum(count, axis=1))
        if not RANKED:
            tl.store(masses + place, tl.sum(mass, axis=1))


@triton.jit
def gather_candidates_kernel(
    logits,
    state,
    top_k,
    top_p,
    bracket,
    thresholds,
    counts,
    masses,
    num_candidates,
    candidates,
    last_bracket,
    k,
    size,
    num_parts,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    WAYS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The places of a part that lie in the row's last bracket, into ``candidates [num_rows, CANDIDATES]``, if they fit.

    ``num_candidates [num_rows]`` counts them; their order is that in which programs come, and does not matter.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    RANKED: tl.constexpr = top_k is None
    own = state + row * FIELDS
    limit, share = limits_of(row, top_k, top_p, k)
    wanted = (limit > 0) & (limit < size)
    if not RANKED:
        wanted = (tl.load(own + MODE) == ANY) & (wanted | (share < 1.0))
    if wanted:
        low, high, total, above_count, above_mass, limited, held = load_bracket(bracket + row * BRACKET)
        if held > CANDIDATES:
            low, high, total, above_count, above_mass, limited, held = narrowed(
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
                WAYS,
                PARTS,
                False,
                RANKED,
            )
        whole = limited != 0
        if not RANKED:
            whole = whole & (share < 1.0)
        best = tl.load(own + BEST)
        high = tl.where(whole, best + 1, high)
        above_count = tl.where(whole, 0, above_count)
        above_mass = tl.where(whole, 0, above_mass)
        if part == 0:
            store_bracket(last_bracket + row * BRACKET, low, high, total, above_count, above_mass, limited, held)
        if held <= CANDIDATES:
            column = part * PART + tl.arange(0, PART)
            x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
            key = key_of(x)
            inside = (column < size) & (key.to(tl.int64) >= low) & (key.to(tl.int64) < high)
            number = tl.cumsum(inside.to(tl.int32), axis=0)
            found = tl.sum(inside.to(tl.int32), axis=0)
            if found > 0:
                at = tl.atomic_add(num_candidates + row, found) + number - 1
                inside = inside & (at < CANDIDATES)
                tl.store(candidates + row * CANDIDATES + at, place_of(key, column), mask=inside)


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


@triton.jit
def cut_kernel(
    logits,
    state,
    scales,
    top_k,
    top_p,
    bracket,
    candidates,
    cuts,
    ranked,
    k,
    size,
    STRIDE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    RANKED_WIDTH: tl.constexpr,
):
    """The cut of a row: ``cuts [num_rows]`` int64. Where there is no bracket, the whole row is looked at.

    Without ``top_k``, the places of the ``k`` most likely tokens go to ``ranked [num_rows, RANKED_WIDTH]``, unordered.
    """
    row = tl.program_id(0).to(tl.int64)
    RANKED: tl.constexpr = top_k is None
    own = state + row * FIELDS
    own_logits = logits + row * size
    limit, share = limits_of(row, top_k, top_p, k)
    wanted = (limit > 0) & (limit < size)
    limited = wanted
    if not RANKED:
        wanted = (tl.load(own + MODE) == ANY) & (wanted | (share < 1.0))
    best = tl.load(own + BEST)
    largest = value_of(best.to(tl.int32))
    scale = tl.load(scales + 2 * row)
    nothing = row * 0
    cut = tl.load(own + FLOOR) << 32
    top = ((best + 1) << 32) - 1
    end = nothing + size
    direct = end > 0
    own_candidates = None
    if bracket is not None:
        own_candidates = candidates + row * CANDIDATES
    if wanted:
        total = nothing
        above_count = nothing
        above_mass = nothing
        if bracket is not None:
            low, high, total, above_count, above_mass, is_limited, held = load_bracket(bracket + row * BRACKET)
            limited = is_limited != 0
            cut = tl.where(limited | (share < 1.0), low << 32, cut)
            top = (high << 32) - 1
            direct = held > CANDIDATES
            end = tl.where(direct, end, held)
        if limited:
            cut = find(
                own_logits,
                own_candidates,
                end,
                direct,
                size,
                cut,
                top,
                limit - above_count,
                largest,
                scale,
                STRIDE,
                False,
            )
        if not RANKED:  # noqa: SIM102 - known at compile time
            if share < 1.0:
                if limited | (total == 0):
                    total, _, _ = survey(
                        own_logits, own_candidates, end, direct, size, top, cut, largest, scale, STRIDE, True
                    )
                cut = find(
                    own_logits,
                    own_candidates,
                    end,
                    direct,
                    size,
                    cut,
                    top,
                    weight_for_share(share, total) - above_mass,
                    largest,
                    scale,
                    STRIDE,
                    True,
                )
    tl.store(cuts + row, cut)
    if RANKED:
        number = nothing
        for start in range(0, end, STRIDE):
            place = look(own_logits, own_candidates, start, end, direct, size, STRIDE)
            kept = place >= cut
            at = number + tl.cumsum(kept.to(tl.int64), axis=0) - 1
            tl.store(ranked + row * RANKED_WIDTH + at, place, mask=kept & (at < RANKED_WIDTH))
            number += tl.sum(kept.to(tl.int64), axis=0)


def cuts_of(
    rows: Rows, states: RowStates, top_k: torch.Tensor | None, top_p: torch.Tensor | None, k: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cuts ``[num_rows]`` of rows with int64 ``top_k`` and fp64 ``top_p``; or of their ``k`` most likely tokens.

    Returns the cuts, and in the second case the places of these tokens ``[num_rows, power of two]``, else None.
    ``k`` is at most ``LARGEST_RANKED``.
    """
    logits = rows.logits
    num_rows, size = logits.shape
    cuts = logits.new_empty(num_rows, dtype=torch.int64)
    ranked = None
    if top_k is None:
        ranked = logits.new_empty(num_rows, ranked_width(k), dtype=torch.int64)
    bracket = candidates = None
    if size > CANDIDATES:
        bracket, candidates = _candidates(rows, states, top_k, top_p, k)
    cut.launch(
        (num_rows,),
        logits,
        states.state,
        states.scales,
        top_k,
        top_p,
        bracket,
        candidates,
        cuts,
        ranked,
        k,
        size,
        STRIDE=STRIDE,
        CANDIDATES=CANDIDATES,
        RANKED_WIDTH=0 if ranked is None else ranked.shape[1],
        num_warps=WARPS,
    )
    return cuts, ranked


def ranked_width(k: int) -> int:
    """Places for ``k`` ranked tokens: few different numbers, for few compilations."""
    return next(width for width in RANKED_WIDTHS if k <= width)


def _candidates(
    rows: Rows, states: RowStates, top_k: torch.Tensor | None, top_p: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brackets ``[num_rows, BRACKET]``, and what lies in them."""
    logits = rows.logits
    num_rows, size = logits.shape
    num_parts = rows.grid[1]
    brackets = logits.new_empty(2, num_rows, BRACKET.value, dtype=torch.int64)
    thresholds = logits.new_empty(2, num_rows, WAYS, dtype=torch.int32)
    counts = logits.new_empty(2, num_rows, num_parts, WAYS, dtype=torch.int32)
    masses: list[torch.Tensor | None] = [None, None]
    if top_k is not None:
        masses = list(torch.empty_like(counts, dtype=torch.int64))
    num_candidates = logits.new_empty(num_rows, dtype=torch.int32)
    candidates = logits.new_empty(num_rows, CANDIDATES, dtype=torch.int64)
    for turn in (0, 1):
        sections.launch(
            rows.grid,
            logits,
            states.state,
            states.scales,
            top_k,
            top_p,
            thresholds[0] if turn else None,
            counts[0] if turn else None,
            masses[0] if turn else None,
            brackets[0],
            thresholds[turn],
            counts[turn],
            masses[turn],
            num_candidates,
            k,
            size,
            num_parts,
            PARTS=rows.parts,
            PART=PART,
            CHUNK=CHUNK,
            WAYS=WAYS,
            CANDIDATES=CANDIDATES,
            num_warps=WARPS,
        )
    gather.launch(
        rows.grid,
        logits,
        states.state,
        top_k,
        top_p,
        brackets[0],
        thresholds[1],
        counts[1],
        masses[1],
        num_candidates,
        candidates,
        brackets[1],
        k,
        size,
        num_parts,
        PARTS=rows.parts,
        PART=PART,
        WAYS=WAYS,
        CANDIDATES=CANDIDATES,
        num_warps=WARPS,
    )
    return brackets[1], candidates


RANKED_WIDTHS = (32, LARGEST_RANKED)

_FILTERS = ({"top_k": "*i64", "top_p": "*fp64"}, {"top_k": None, "top_p": None})
_LARGE_PARTS = [parts for parts in PARTS if parts * PART > CANDIDATES]


def _sections_configurations(family: str) -> list[Configuration]:
    found = []
    for filters in _FILTERS:
        masses = filters["top_k"] and "*i64"
        for parts in _LARGE_PARTS:
            for first in (True, False):
                types: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", "scales": "*fp32", **filters}
                types |= {
                    "thresholds_before": None if first else "*i32",
                    "counts_before": None if first else "*i32",
                    "masses_before": None if first else masses,
                    "bracket": "*i64",
                    "thresholds": "*i32",
                    "counts": "*i32",
                    "masses": masses,
                    "num_candidates": "*i32",
                    **dict.fromkeys(("k", "size", "num_parts"), "i32"),
                }
                constants = {"PARTS": parts, "PART": PART, "CHUNK": CHUNK, "WAYS": WAYS, "CANDIDATES": CANDIDATES}
                found.append(Configuration(types, constants, WARPS))
    return found


def _gather_configurations(family: str) -> list[Configuration]:
    found = []
    for filters in _FILTERS:
        for parts in _LARGE_PARTS:
            types: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", **filters}
            types |= {
                "bracket": "*i64",
                "thresholds": "*i32",
                "counts": "*i32",
                "masses": filters["top_k"] and "*i64",
                "num_candidates": "*i32",
                "candidates": "*i64",
                "last_bracket": "*i64",
                **dict.fromkeys(("k", "size", "num_parts"), "i32"),
            }
            constants = {"PARTS": parts, "PART": PART, "WAYS": WAYS, "CANDIDATES": CANDIDATES}
            found.append(Configuration(types, constants, WARPS))
    return found


def _cut_configurations(family: str) -> list[Configuration]:
    found = []
    for filters in _FILTERS:
        drawn = filters["top_k"] is not None
        for bracket in (None, "*i64"):
            for width in (0,) if drawn else RANKED_WIDTHS:
                types: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", "scales": "*fp32", **filters}
                types |= {
                    "bracket": bracket,
                    "candidates": bracket,
                    "cuts": "*i64",
                    "ranked": None if drawn else "*i64",
                    "k": "i32",
                    "size": "i32",
                }
                constants = {"STRIDE": STRIDE, "CANDIDATES": CANDIDATES, "RANKED_WIDTH": width}
                found.append(Configuration(types, constants, WARPS))
    return found


sections = Kernel(sections_kernel, _sections_configurations)
gather = Kernel(gather_candidates_kernel, _gather_configurations)
cut = Kernel(cut_kernel, _cut_configurations)
