"""From logits to tokens by many programs for one row; see ``sampling_row.py`` for how they stay exact.

``sample`` reads the logits six times at most: what is largest, two looks that narrow the filters' ends down, one that
gathers the candidates, one that weighs the parts of what is left, and then one part, where the draw ends.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.reference import sampling as reference
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.sampling_adjust import apply_bias, apply_penalties, keep_tokens, mask_tokens
from vllm_kernels.triton.sampling_cut import LARGEST_RANKED, RANKED_WIDTHS, cuts_of
from vllm_kernels.triton.sampling_row import (
    ANY,
    BEST,
    FIELDS,
    FIRST,
    IDS,
    LARGEST_VOCABULARY,
    LOWEST_PLACE,
    MODE,
    NAN_KEY,
    NOTHING,
    ONE,
    PART,
    PARTS,
    WARPS,
    begun,
    key_of,
    most_likely,
    place_of,
    scanned,
    value_of,
    weight_of,
)

__all__ = [
    "apply_bias",
    "apply_penalties",
    "filter_logits",
    "greedy",
    "keep_tokens",
    "mask_tokens",
    "sample",
    "top_logprobs",
]


@triton.jit
def kept_weights(logits, row, column, largest, scale, cut, size):
    """Weights of columns of a row, 0 for those that the cut drops."""
    x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
    kept = (column < size) & (place_of(key_of(x), column) >= cut)
    return tl.where(kept, weight_of(x, largest, scale), 0)


@triton.jit
def weigh_kernel(logits, state, scales, cuts, part_mass, size, num_parts, PART: tl.constexpr, PDL: tl.constexpr):
    """The weight of what is kept of a part of a row: ``part_mass [num_rows, num_parts]`` int64."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(state + row * FIELDS + MODE) == ANY:
        column = part * PART + tl.arange(0, PART)
        largest = value_of(tl.load(state + row * FIELDS + BEST).to(tl.int32))
        weights = kept_weights(logits, row, column, largest, tl.load(scales + 2 * row), tl.load(cuts + row), size)
        tl.store(part_mass + row * num_parts + part, tl.sum(weights, axis=0))


@triton.jit
def pick_kernel(
    logits,
    state,
    scales,
    cuts,
    part_mass,
    uniforms,
    out,
    size,
    num_parts,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    PDL: tl.constexpr,
):
    """The token of a row: first in which part the draw ends, then where in it."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    mode = tl.load(state + row * FIELDS + MODE)
    token = tl.where(mode == NOTHING, -1, tl.load(state + row * FIELDS + FIRST))
    if mode == ANY:
        part = tl.arange(0, PARTS)
        masses = tl.load(part_mass + row * num_parts + part, mask=part < num_parts, other=0)
        total = tl.sum(masses, axis=0)
        # Whole weights up to a token are more than uniform * total if they are more than that, rounded down.
        target = tl.minimum((tl.load(uniforms + row) * total.to(tl.float64)).to(tl.int64), total - 1)
        running = tl.cumsum(masses, axis=0)
        end = tl.min(tl.where(running > target, part, PARTS - 1), axis=0)
        target -= tl.sum(tl.where(part < end, masses, 0), axis=0)
        place = tl.arange(0, PART)
        column = end * PART + place
        largest = value_of(tl.load(state + row * FIELDS + BEST).to(tl.int32))
        weights = kept_weights(logits, row, column, largest, tl.load(scales + 2 * row), tl.load(cuts + row), size)
        running = tl.cumsum(weights, axis=0)
        token = tl.min(tl.where(running > target, column, NAN_KEY), axis=0).to(tl.int64)
    tl.store(out + row, token)


@triton.jit
def apply_kernel(logits, state, temperature, cuts, out, size, PART: tl.constexpr, PDL: tl.constexpr):
    """A part of a row, divided by its temperature, -inf where the cut drops a token; as it is if nothing is drawn."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * PART + tl.arange(0, PART)
    x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
    if tl.load(state + row * FIELDS + MODE) == ANY:
        kept = place_of(key_of(x), column) >= tl.load(cuts + row)
        heat = tl.load(temperature + row)
        x = tl.where(kept, tl.div_rn(x, tl.zeros_like(x) + heat), float("-inf"))
    tl.store(out + row * size + column, x, mask=column < size)


@triton.jit
def tally_kernel(
    logits, state, scales, token_ids, part_mass, part_larger, size, num_parts, PART: tl.constexpr, PDL: tl.constexpr
):
    """The weight of a part of a row, and how many of its logits are larger than that of the row's given token."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * size + column, mask=column < size, other=float("-inf"))
    token = tl.load(token_ids + row)
    inside = (token >= 0) & (token < size)
    own = key_of(tl.load(logits + row * size + token, mask=inside, other=float("nan")))
    larger = (column < size) & (key_of(x) > own)
    tl.store(part_larger + row * num_parts + part, tl.sum(larger.to(tl.int32), axis=0))
    mass = row * 0
    if tl.load(state + row * FIELDS + MODE) == ANY:
        largest = value_of(tl.load(state + row * FIELDS + BEST).to(tl.int32))
        mass = tl.sum(weight_of(x, largest, tl.load(scales + 2 * row)), axis=0)
    tl.store(part_mass + row * num_parts + part, mass)


@triton.jit(do_not_specialize=["k", "width"])
def logprobs_kernel(
    logits,
    state,
    token_ids,
    part_mass,
    part_larger,
    ranked,
    ids,
    logprobs,
    ranks,
    totals,
    k,
    width,
    size,
    num_parts,
    PARTS: tl.constexpr,
    RANKED_WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """The rank of a row's given token, and its log-probability and those of the ranked ones, most likely first.

    Rows of ``ids`` and ``logprobs`` have ``width`` columns. ``totals [num_rows, 2]``: the largest logit, and the
    logarithm of the weights' sum.
    """
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    present = part < num_parts
    mass = tl.sum(tl.load(part_mass + row * num_parts + part, mask=present, other=0), axis=0)
    larger = tl.sum(tl.load(part_larger + row * num_parts + part, mask=present, other=0), axis=0)
    largest = value_of(tl.load(state + row * FIELDS + BEST).to(tl.int32))
    usable = tl.load(state + row * FIELDS + MODE) == ANY
    log_sum = tl.log(tl.where(usable, mass, 1).to(tl.float64) / ONE).to(tl.float32)
    log_sum = tl.where(usable, log_sum, float("nan"))
    token = tl.load(token_ids + row)
    inside = (token >= 0) & (token < size)
    own = tl.load(logits + row * size + token, mask=inside, other=float("nan"))
    tl.store(ranks + row, larger.to(tl.int64) + 1)
    tl.store(ids + row * width, token)
    tl.store(logprobs + row * width, own - largest - log_sum)
    tl.store(totals + 2 * row, largest)
    tl.store(totals + 2 * row + 1, log_sum)
    if ranked is not None:
        i = tl.arange(0, RANKED_WIDTH)
        places = tl.load(ranked + row * RANKED_WIDTH + i, mask=i < k, other=LOWEST_PLACE)
        places = tl.sort(places, descending=True)
        at = row * width + 1 + i
        tl.store(ids + at, (places & IDS) ^ IDS, mask=i < k)
        tl.store(logprobs + at, value_of((places >> 32).to(tl.int32)) - largest - log_sum, mask=i < k)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return most_likely(scanned(logits))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    if logits.shape[1] > LARGEST_VOCABULARY:
        return reference.sample(logits, temperature, top_k, top_p, min_p, uniforms)
    rows = scanned(logits)
    temperature, top_k, top_p, min_p = _filters(temperature, top_k, top_p, min_p)
    states = begun(rows, temperature, min_p)
    cuts, _ = cuts_of(rows, states, top_k, top_p)
    size, num_parts = logits.shape[1], rows.grid[1]
    part_mass = cuts.new_empty(rows.grid)
    shared = (rows.logits, states.state, states.scales, cuts, part_mass)
    weigh.launch(rows.grid, *shared, size, num_parts, PART=PART, num_warps=WARPS)
    out = torch.empty_like(cuts)
    pick.launch(
        (len(out),),
        *shared,
        uniforms.contiguous(),
        out,
        size,
        num_parts,
        PARTS=rows.parts,
        PART=PART,
        num_warps=WARPS,
    )
    return out


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    if logits.shape[1] > LARGEST_VOCABULARY:
        return reference.filter_logits(logits, temperature, top_k, top_p, min_p)
    rows = scanned(logits)
    temperature, top_k, top_p, min_p = _filters(temperature, top_k, top_p, min_p)
    states = begun(rows, temperature, min_p)
    cuts, _ = cuts_of(rows, states, top_k, top_p)
    out = torch.empty_like(rows.logits)
    apply.launch(
        rows.grid, rows.logits, states.state, temperature, cuts, out, logits.shape[1], PART=PART, num_warps=WARPS
    )
    return out


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, size = logits.shape
    if size > LARGEST_VOCABULARY:
        return reference.top_logprobs(logits, token_ids, k)
    rows = scanned(logits)
    states = begun(rows, None, None)
    token_ids = token_ids.contiguous()
    num_parts = rows.grid[1]
    part_mass = logits.new_empty(rows.grid, dtype=torch.int64)
    part_larger = torch.empty_like(rows.part_best)
    tally.launch(
        rows.grid,
        rows.logits,
        states.state,
        states.scales,
        token_ids,
        part_mass,
        part_larger,
        size,
        num_parts,
        PART=PART,
        num_warps=WARPS,
    )
    ranked = cuts_of(rows, states, None, None, k)[1] if 0 < k <= LARGEST_RANKED else None
    ids = logits.new_empty(num_rows, k + 1, dtype=torch.int64)
    logprobs, totals = logits.new_empty(num_rows, k + 1), logits.new_empty(num_rows, 2)
    ranks = torch.empty_like(token_ids)
    list_logprobs.launch(
        (num_rows,),
        rows.logits,
        states.state,
        token_ids,
        part_mass,
        part_larger,
        ranked,
        ids,
        logprobs,
        ranks,
        totals,
        k,
        k + 1,
        size,
        num_parts,
        PARTS=rows.parts,
        RANKED_WIDTH=0 if ranked is None else ranked.shape[1],
    )
    if k > LARGEST_RANKED:
        # So many are a sort of the row. Adding 0 makes -0 equal to 0.
        found = torch.sort(rows.logits + 0.0, dim=1, descending=True, stable=True)
        ids[:, 1:] = found.indices[:, :k]
        logprobs[:, 1:] = found.values[:, :k] - totals[:, :1] - totals[:, 1:]
    return ids, logprobs, ranks


def _filters(
    temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """In the types and the layout of the kernels; without a copy for what the sampler gives."""
    return (
        temperature.to(torch.float32).contiguous(),
        top_k.contiguous(),
        top_p.to(torch.float64).contiguous(),
        min_p.to(torch.float64).contiguous(),
    )


_ROW: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", "scales": "*fp32"}


def _weigh_configurations(family: str) -> list[Configuration]:
    types = {**_ROW, "cuts": "*i64", "part_mass": "*i64", "size": "i32", "num_parts": "i32"}
    return [Configuration(types, {"PART": PART}, WARPS)]


def _pick_configurations(family: str) -> list[Configuration]:
    types = {**_ROW, "cuts": "*i64", "part_mass": "*i64", "uniforms": "*fp64", "out": "*i64"}
    types |= {"size": "i32", "num_parts": "i32"}
    return [Configuration(types, {"PARTS": parts, "PART": PART}, WARPS) for parts in PARTS]


def _apply_configurations(family: str) -> list[Configuration]:
    types: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", "temperature": "*fp32", "cuts": "*i64"}
    return [Configuration({**types, "out": "*fp32", "size": "i32"}, {"PART": PART}, WARPS)]


def _tally_configurations(family: str) -> list[Configuration]:
    types = {**_ROW, "token_ids": "*i64", "part_mass": "*i64", "part_larger": "*i32", "size": "i32", "num_parts": "i32"}
    return [Configuration(types, {"PART": PART}, WARPS)]


def _logprobs_configurations(family: str) -> list[Configuration]:
    found = []
    for parts in PARTS:
        for width in (0, *RANKED_WIDTHS):
            types: dict[str, str | None] = {"logits": "*fp32", "state": "*i64", "token_ids": "*i64"}
            types |= {"part_mass": "*i64", "part_larger": "*i32", "ranked": "*i64" if width else None}
            types |= {"ids": "*i64", "logprobs": "*fp32", "ranks": "*i64", "totals": "*fp32"}
            types |= dict.fromkeys(("k", "width", "size", "num_parts"), "i32")
            found.append(Configuration(types, {"PARTS": parts, "RANKED_WIDTH": width}))
    return found


weigh = Kernel(weigh_kernel, _weigh_configurations)
pick = Kernel(pick_kernel, _pick_configurations)
apply = Kernel(apply_kernel, _apply_configurations)
tally = Kernel(tally_kernel, _tally_configurations)
list_logprobs = Kernel(logprobs_kernel, _logprobs_configurations)
