"""Not in Triton yet: torch's operators, which make the weight floats again for every product."""

from vllm_kernels.eager.quantization import new_weight

__all__ = ["new_weight"]
