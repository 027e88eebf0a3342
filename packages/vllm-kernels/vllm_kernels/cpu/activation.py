from vllm_kernels.eager.activation import silu_and_mul, gelu_and_mul, gelu_tanh_and_mul, gelu, gelu_tanh, relu

__all__ = ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu", "gelu_tanh", "relu"]
