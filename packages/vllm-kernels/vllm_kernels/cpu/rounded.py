"""No native kernel: the native norms and gates, rounded by torch."""

import torch

from vllm_kernels.cpu import activation, norm
from vllm_kernels.linear_weight import Activation
from vllm_kernels.reference.rounded import gate, round_tokens
from vllm_kernels.rounded_activations import Rounded

__all__ = ["activation_and_mul", "fused_add_rms_norm", "gate", "rms_norm", "round_tokens"]

GATES = {
    "silu": activation.silu_and_mul,
    "gelu": activation.gelu_and_mul,
    "gelu_tanh": activation.gelu_tanh_and_mul,
    "swigluoai": activation.swigluoai_and_mul,
}


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> Rounded:
    return round_tokens(norm.rms_norm(x, weight, eps, unit_offset), dtype, scale)


def fused_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    scale: torch.Tensor | None,
    unit_offset: bool,
) -> tuple[Rounded, torch.Tensor]:
    normed, new_residual = norm.fused_add_rms_norm(x, residual, weight, eps, unit_offset)
    return round_tokens(normed, dtype, scale), new_residual


def activation_and_mul(
    x: torch.Tensor, activation: Activation, dtype: torch.dtype, scale: torch.Tensor | None
) -> Rounded:
    return round_tokens(GATES[activation](x), dtype, scale)
