"""The weighted sum of what experts made of each token."""

import torch
import triton
import triton.language as tl

from vllm_kernels.expert_weight import Routing
from vllm_kernels.triton import moe_product
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two


@triton.jit
def combine_kernel(
    made,
    experts,
    weights,
    out,
    HIDDEN: tl.constexpr,
    TOP: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK columns of one token: what its experts made (``[tokens * TOP, HIDDEN]``), times their weights, in order."""
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    result = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(TOP):
        pair = token * TOP + place
        expert = tl.load(experts + pair)
        known = (expert >= 0) & (expert < EXPERTS)
        weight = tl.where(known, tl.load(weights + pair).to(tl.float32), 0.0)
        values = tl.load(made + pair * HIDDEN + column, mask=column < tl.where(known, HIDDEN, 0), other=0.0)
        result += weight * values.to(tl.float32)
    tl.store(out + token * HIDDEN + column, result.to(out.dtype.element_ty), mask=column < HIDDEN)


def combine(made: torch.Tensor, routing: Routing, num_experts: int, out: torch.Tensor) -> None:
    """The weighted sum of what experts made of each token: ``[n * top_k, hidden]`` -> ``out`` ``[n, hidden]``."""
    count, hidden = out.shape
    block = _combine_block(hidden)
    combination.launch(
        (count, -(-hidden // block)),
        made,
        routing.experts.contiguous(),
        routing.weights.contiguous(),
        out,
        HIDDEN=hidden,
        TOP=routing.experts.shape[1],
        EXPERTS=num_experts,
        BLOCK=block,
    )


def _combine_block(hidden: int) -> int:
    return min(power_of_two(hidden), 1024)


def _combine_configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"made": pointer(dtype), "experts": "*i32", "weights": "*fp32", "out": pointer(dtype)},
            {"HIDDEN": hidden, "TOP": top_k, "EXPERTS": experts, "BLOCK": _combine_block(hidden)},
        )
        for dtype in FLOATS
        for experts, top_k, hidden, _ in (*moe_product.MODELS, moe_product.GPT_OSS)
    ]


combination = Kernel(combine_kernel, _combine_configurations)
