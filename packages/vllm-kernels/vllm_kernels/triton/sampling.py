"""Not in Triton yet: the reference runs on any device, row by row."""

from vllm_kernels.reference.sampling import *  # noqa: F403
