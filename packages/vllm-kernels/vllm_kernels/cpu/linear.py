from vllm_kernels.eager.linear import linear, padded_rows

__all__ = ["linear", "padded_rows"]
