from vllm_kernels.eager.attention import paged_attention

__all__ = ["paged_attention"]
