from vllm_kernels.eager.cache import write_kv

__all__ = ["write_kv"]
