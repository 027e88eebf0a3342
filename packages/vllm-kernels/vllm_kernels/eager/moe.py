import torch

from vllm_kernels.eager import linear, mxfp4, quantization
from vllm_kernels.expert_weight import ExpertWeight, Routing, Scheme
from vllm_kernels.linear_weight import Activation
from vllm_kernels.reference import moe as reference
from vllm_kernels.reference.moe import parts_of, route, row_of

__all__ = ["moe", "new_weight", "route"]


def new_weight(
    num_experts: int, out_features: int, in_features: int, dtype: torch.dtype, scheme: Scheme, gated: bool
) -> ExpertWeight:
    return reference.new_weight(
        num_experts,
        out_features,
        in_features,
        dtype,
        scheme,
        gated,
        linear.new_weight,
        quantization.new_weight,
        mxfp4.new_weight,
    )


def moe(
    x: torch.Tensor,
    routing: Routing,
    gate_up: ExpertWeight,
    down: ExpertWeight,
    activation: Activation,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
) -> torch.Tensor:
    """Expert by expert, each with all of its tokens; then the sum, in the order of the routing."""
    ups, downs = parts_of(gate_up), parts_of(down)
    count, top_k = routing.experts.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    experts, num_experts = routing.experts.flatten(), gate_up.num_experts
    known = (experts >= 0) & (experts < num_experts)
    experts = torch.where(known, experts, num_experts)
    made = x.new_zeros(count * top_k, down.out_features)
    pairs_of = experts.argsort(stable=True).split(experts.bincount(minlength=num_experts + 1).tolist())
    for expert, pairs in enumerate(pairs_of[:num_experts]):
        if len(pairs):
            hidden = ups[expert].multiply_gated(x[pairs // top_k], row_of(gate_up_bias, expert), activation)
            made[pairs] = downs[expert].multiply(hidden, row_of(down_bias, expert), None, x.dtype)
    weights = torch.where(known, routing.weights.flatten(), 0.0).view(count, top_k).to(wide)
    out = torch.zeros(x.shape, dtype=wide, device=x.device)
    for column in range(top_k):
        out += weights[:, column, None] * made[column::top_k]
    return out.to(x.dtype)
