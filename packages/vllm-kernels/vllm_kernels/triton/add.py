"""Torch's own kernel: one pass over the bytes that must be moved."""

from vllm_kernels.eager.add import add

__all__ = ["add"]
