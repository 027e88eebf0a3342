"""Torch has no product of fp8 numbers on a CPU: those of the floats that they stand for."""

from vllm_kernels.reference.fp8 import new_weight

__all__ = ["new_weight"]
