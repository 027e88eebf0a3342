"""No native kernel yet reads MXFP4: entries are widened, and multiplied by torch."""

from vllm_kernels.eager.mxfp4 import new_weight

__all__ = ["new_weight"]
