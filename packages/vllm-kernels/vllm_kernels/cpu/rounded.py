"""No native kernel: the native norms and gates, rounded by torch."""

from vllm_kernels.cpu import activation, norm
from vllm_kernels.reference.rounded import RoundedAfter, round_tokens

__all__ = ["activation_and_mul", "fused_add_rms_norm", "rms_norm", "round_tokens"]

_face = RoundedAfter(
    norm,
    {
        "silu": activation.silu_and_mul,
        "gelu": activation.gelu_and_mul,
        "gelu_tanh": activation.gelu_tanh_and_mul,
        "swigluoai": activation.swigluoai_and_mul,
    },
)
rms_norm, fused_add_rms_norm, activation_and_mul = _face.rms_norm, _face.fused_add_rms_norm, _face.activation_and_mul
