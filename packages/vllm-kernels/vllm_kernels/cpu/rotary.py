from vllm_kernels.eager.rotary import apply_rotary

__all__ = ["apply_rotary"]
