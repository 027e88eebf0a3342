"""Where the filters of a row end: the *cut*, the last place (``sampling_row.py``) that they keep.

Rows of a large vocabulary are searched by many programs at first. Twice, WAYS keys divide what is left, and what lies
above each is counted and weighed (``sections_kernel``): of evenly spread logits, a few thousand lie between the two
keys that are left. These candidates are gathered, and one program halves them until the cut is found
(``cut_kernel``); without enough luck it goes through the whole row instead, which is only slower.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.sampling_bracket import BRACKET, CANDIDATES, FILTERS, limits_of, load_bracket, weight_for_share
from vllm_kernels.triton.sampling_candidates import candidates_of
from vllm_kernels.triton.sampling_find import find, look, survey
from vllm_kernels.triton.sampling_row import ANY, BEST, FIELDS, FLOOR, MODE, WARPS, Rows, RowStates, value_of

STRIDE = 2048
"""Candidates that a program of ``cut_kernel`` looks at together."""
LARGEST_RANKED = 1024
RANKED_WIDTHS = (32, LARGEST_RANKED)


@triton.jit(do_not_specialize=["k"])
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
    PDL: tl.constexpr,
):
    """The cut of a row: ``cuts [num_rows]`` int64. Where there is no bracket, the whole row is looked at.

    Without ``top_k``, the places of the ``k`` most likely tokens go to ``ranked [num_rows, RANKED_WIDTH]``, unordered.
    """
    wait_for_earlier(PDL)
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
        bracket, candidates = candidates_of(rows, states, top_k, top_p, k)
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


def _cut_configurations(family: str) -> list[Configuration]:
    found = []
    for filters in FILTERS:
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


cut = Kernel(cut_kernel, _cut_configurations)
