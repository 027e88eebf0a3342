"""All Triton kernels of this wheel."""

from vllm_kernels.triton import activation, attention, cache, embedding, lora, mla, norm, quantized_product, rotary
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
    mla.attend_latent,
    mla.write,
    quantized_product.rounding,
    quantized_product.product,
    quantized_product.rounded_product,
    quantized_product.add_parts,
    lora.shrink,
    lora.expand,
)
