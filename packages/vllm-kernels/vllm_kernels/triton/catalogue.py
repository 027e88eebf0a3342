"""All Triton kernels of this wheel."""

from vllm_kernels.triton import activation, attention, cache, embedding, norm, rotary
from vllm_kernels.triton.kernel import Kernel

KERNELS: tuple[Kernel, ...] = (
    norm.norm,
    activation.gated,
    activation.plain,
    embedding.lookup,
    cache.write,
    rotary.rope,
    attention.attend,
    attention.merge,
)
