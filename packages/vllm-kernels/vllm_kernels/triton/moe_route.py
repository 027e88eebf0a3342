"""The choice of experts, see ``ops.moe.route``: all of a token's in one program."""

from typing import Any

import torch
import triton
import triton.language as tl

from vllm_kernels.expert_weight import Routing
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two

ENTRIES = 1024
"""Scores of a program, at least, where one token has fewer."""


@triton.jit
def keys_of(values, place, COUNT: tl.constexpr):
    """int64 that are ordered as fp32 values are, and among equals from the lowest ``place`` (below COUNT) up."""
    bits = values.to(tl.int32, bitcast=True)
    # Negative numbers are ordered by the complement of their lower bits.
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return ordered * COUNT + (COUNT - 1 - place)


@triton.jit
def keep_groups(
    choice, BIASED: tl.constexpr, TOP_GROUPS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr
):
    """Scores ``[ROWS, GROUPS * SIZE]`` with minus infinity in all but the best groups."""
    NEVER: tl.constexpr = -(2**62)
    members = tl.reshape(choice, [ROWS, GROUPS, SIZE])
    of_group = tl.max(members, axis=2)
    if BIASED and SIZE > 1:
        place = tl.arange(0, SIZE)[None, None, :]
        keys = keys_of(members, place, SIZE)
        second = tl.max(tl.where(keys == tl.max(keys, axis=2)[:, :, None], float("-inf"), members), axis=2)
        # A group of one has padding beside it.
        of_group += tl.where(second == float("-inf"), 0.0, second)
    keys = keys_of(of_group, tl.arange(0, GROUPS)[None, :], GROUPS)
    allowed = tl.zeros([ROWS, GROUPS], tl.int32)
    for _ in range(TOP_GROUPS):
        best = keys == tl.max(keys, axis=1)[:, None]
        allowed = tl.where(best, 1, allowed)
        keys = tl.where(best, NEVER, keys)
    members = tl.where(allowed[:, :, None] == 1, members, float("-inf"))
    return tl.reshape(members, [ROWS, GROUPS * SIZE])


@triton.jit(do_not_specialize=["num_tokens"])
def route_kernel(
    logits,
    bias,
    experts,
    weights,
    num_tokens,
    stride,
    scale,
    EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS tokens: logits ``[num_tokens, EXPERTS]`` -> ``experts`` and ``weights`` ``[num_tokens, TOP]``.

    Scores stand in BLOCK_G groups of BLOCK_S places, powers of two that hold the groups and the experts of one. The
    next best is found TOP times.
    """
    wait_for_earlier(PDL)
    NEVER: tl.constexpr = -(2**62)
    PLACES: tl.constexpr = BLOCK_G * BLOCK_S
    SIZE: tl.constexpr = EXPERTS // GROUPS
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = token < num_tokens
    place = tl.arange(0, PLACES)
    group = place // BLOCK_S
    member = place % BLOCK_S
    exists = (group < GROUPS) & (member < SIZE)
    expert = group * SIZE + member
    place_in_logits = token[:, None].to(tl.int64) * stride + expert[None, :]
    values = tl.load(logits + place_in_logits, mask=present[:, None] & exists[None, :], other=0.0).to(tl.float32)
    values = tl.where(exists[None, :], values, float("-inf"))
    if SCORE == "softmax":
        # Not less the maximum alone, which drops NaN; NaN makes the sum, and all scores, NaN.
        raised = tl.exp(values - tl.max(values, axis=1)[:, None])
        scores = tl.div_rn(raised, tl.sum(raised, axis=1)[:, None] + tl.zeros_like(raised))
    else:
        scores = 1.0 / (1.0 + tl.exp(-values))
    choice = scores
    if bias is not None:
        choice += tl.load(bias + expert, mask=exists, other=0.0).to(tl.float32)[None, :]
    choice = tl.where((choice == choice) & exists[None, :], choice, float("-inf"))
    if TOP_GROUPS < GROUPS:
        choice = keep_groups(choice, bias is not None, TOP_GROUPS, ROWS, BLOCK_G, BLOCK_S)
    keys = tl.where(exists[None, :], keys_of(choice, place[None, :], PLACES), NEVER)
    column = tl.arange(0, BLOCK_T)
    chosen = tl.zeros([ROWS, BLOCK_T], tl.int32)
    result = tl.zeros([ROWS, BLOCK_T], tl.float32)
    for turn in range(TOP):
        best = keys == tl.max(keys, axis=1)[:, None]
        turn_column = (column == turn)[None, :]
        chosen = tl.where(turn_column, tl.sum(tl.where(best, expert[None, :], 0), axis=1)[:, None], chosen)
        result = tl.where(turn_column, tl.sum(tl.where(best, scores, 0.0), axis=1)[:, None], result)
        keys = tl.where(best, NEVER, keys)
    if RENORMALIZE:
        result = result / (tl.sum(result, axis=1) + 1e-20)[:, None]
    target = token[:, None].to(tl.int64) * TOP + column[None, :]
    stored = present[:, None] & (column < TOP)[None, :]
    tl.store(experts + target, chosen, mask=stored)
    tl.store(weights + target, result * scale, mask=stored)


def route(
    logits: torch.Tensor,
    top_k: int,
    score: str,
    renormalize: bool,
    scale: float,
    bias: torch.Tensor | None,
    groups: int,
    top_groups: int,
) -> Routing:
    """For logits of one of ``FLOATS``."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    count, num_experts = logits.shape
    routing = Routing(
        logits.new_empty(count, top_k, dtype=torch.int32), logits.new_empty(count, top_k, dtype=torch.float32)
    )
    constants = _constants(num_experts, top_k, score, renormalize, groups, top_groups)
    router.launch(
        (triton.cdiv(count, constants["ROWS"]),),
        logits,
        None if bias is None else bias.float().contiguous(),
        routing.experts,
        routing.weights,
        count,
        logits.stride(0),
        float(scale),
        **constants,
    )
    return routing


def _constants(
    num_experts: int, top_k: int, score: str, renormalize: bool, groups: int, top_groups: int
) -> dict[str, Any]:
    block_g, block_s = power_of_two(groups), power_of_two(num_experts // groups)
    return {
        "EXPERTS": num_experts,
        "GROUPS": groups,
        "TOP_GROUPS": top_groups,
        "TOP": top_k,
        "SCORE": score,
        "RENORMALIZE": renormalize,
        "ROWS": max(1, ENTRIES // (block_g * block_s)) if block_g * block_s < ENTRIES else 1,
        "BLOCK_G": block_g,
        "BLOCK_S": block_s,
        "BLOCK_T": power_of_two(top_k),
    }


ROUTERS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"num_experts": 8, "top_k": 2, "score": "softmax", "renormalize": True}, False),
    ({"num_experts": 32, "top_k": 4, "score": "softmax", "renormalize": True}, False),
    ({"num_experts": 60, "top_k": 4, "score": "softmax", "renormalize": False}, False),
    ({"num_experts": 64, "top_k": 6, "score": "softmax", "renormalize": False}, False),
    ({"num_experts": 128, "top_k": 8, "score": "softmax", "renormalize": True}, False),
    ({"num_experts": 160, "top_k": 6, "score": "softmax", "renormalize": False, "groups": 8, "top_groups": 3}, False),
    ({"num_experts": 256, "top_k": 8, "score": "sigmoid", "renormalize": True, "groups": 8, "top_groups": 4}, True),
)
"""Arguments of the routers of Mixtral, gpt-oss, Qwen 1.5, DeepSeek-V2 Lite, Qwen 3, DeepSeek-V2 and -V3; with bias?"""


def _configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {
                "logits": pointer(dtype),
                "bias": "*fp32" if biased else None,
                "experts": "*i32",
                "weights": "*fp32",
                "num_tokens": "i32",
                "stride": "i32",
                "scale": "fp32",
            },
            _constants(**{"groups": 1, "top_groups": 1, **router}),
        )
        for router, biased in ROUTERS
        for dtype in FLOATS
    ]


router = Kernel(route_kernel, _configurations)
