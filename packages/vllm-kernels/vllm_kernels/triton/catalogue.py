"""All Triton kernels of this wheel."""

from vllm_kernels.triton import (
    activation,
    attention,
    cache,
    embedding,
    lora,
    mla,
    moe_align,
    moe_product,
    moe_route,
    norm,
    quantized_product,
    rotary,
)
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
    moe_route.router,
    moe_align.count,
    moe_align.start,
    moe_align.place,
    moe_product.expert_product,
    moe_product.fp8_rounding,
    moe_product.combination,
    lora.shrink,
    lora.expand,
)
