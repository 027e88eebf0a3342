from vllm_kernels.eager.linear import new_weight

__all__ = ["new_weight"]
