"""Torch's own products: a matrix for each adapter of the step."""

from vllm_kernels.eager.lora import lora_expand, lora_shrink

__all__ = ["lora_expand", "lora_shrink"]
