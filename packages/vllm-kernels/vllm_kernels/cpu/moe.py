"""Experts are multiplied one after the other by the kernels of projections; what is between them is torch's."""

import torch

from vllm_kernels.cpu import linear, mxfp4, quantization
from vllm_kernels.eager.moe import moe, route
from vllm_kernels.expert_weight import ExpertWeight, Scheme
from vllm_kernels.reference import moe as reference

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
