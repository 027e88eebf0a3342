"""No native kernel: the processor has no products of fp8 numbers."""

from vllm_kernels.eager.fp8 import new_weight

__all__ = ["new_weight"]
