"""The candidates of a row's cut: two passes narrow its bracket down, a third gathers what lies in it."""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.sampling_bracket import (
    BRACKET,
    CANDIDATES,
    FILTERS,
    WAYS,
    limits_of,
    load_bracket,
    narrowed,
    section_keys,
    store_bracket,
)
from vllm_kernels.triton.sampling_row import (
    ANY,
    BEST,
    FIELDS,
    FLOOR,
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

CHUNK = 256
"""Columns that a program of ``sections_kernel`` looks at together."""


@triton.jit(do_not_specialize=["k"])
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
    PDL: tl.constexpr,
):
    """How many logits of a part lie above each of WAYS keys, and their weight: ``[num_rows, num_parts, WAYS]``.

    In the first pass over a row (there are no ``*_before``) of the whole row, in the second of the bracket that the
    first leaves, which goes to ``bracket [num_rows, BRACKET]``, unless it holds few enough already. Without ``top_k``
    the ``k`` most likely are looked for, and no weights.
    """
    wait_for_earlier(PDL)
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


@triton.jit(do_not_specialize=["k"])
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
    PDL: tl.constexpr,
):
    """The places of a part that lie in the row's last bracket, into ``candidates [num_rows, CANDIDATES]``, if they fit.

    ``num_candidates [num_rows]`` counts them; their order is that in which programs come, and does not matter.
    """
    wait_for_earlier(PDL)
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


def candidates_of(
    rows: Rows, states: RowStates, top_k: torch.Tensor | None, top_p: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brackets ``[num_rows, BRACKET]`` of rows with more than CANDIDATES logits, and the places that lie in them."""
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


_LARGE_PARTS = [parts for parts in PARTS if parts * PART > CANDIDATES]


def _sections_configurations(family: str) -> list[Configuration]:
    found = []
    for filters in FILTERS:
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
    for filters in FILTERS:
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


sections = Kernel(sections_kernel, _sections_configurations)
gather = Kernel(gather_candidates_kernel, _gather_configurations)
