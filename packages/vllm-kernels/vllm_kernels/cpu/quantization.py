from vllm_kernels.eager.quantization import new_weight

__all__ = ["new_weight"]
