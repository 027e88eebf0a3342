"""Tensor operations for LLM inference: the public functions are in ``vllm_kernels.ops``."""

__version__ = "0.1.0"
