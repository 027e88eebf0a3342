"""For each shape class of a tuned kernel a case that has it: what the tuner times."""

from collections.abc import Callable
from typing import Any

import torch

from vllm_kernels.benchmarks.attention import attention
from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.benchmarks.experts import experts
from vllm_kernels.benchmarks.latents import latents
from vllm_kernels.benchmarks.products import fp8_product, product
from vllm_kernels.benchmarks.projections import added, gated
from vllm_kernels.benchmarks.rows import gate, norm
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.triton.tuning import ShapeClass


def workload(kernel: str, shape: ShapeClass, device: torch.device, *, tiny: bool = False) -> Case:
    """A case of one class, with inputs of a real model's size, or tiny ones that the interpreter can run."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    return _MADE[kernel](device, dtype, Sizes(tiny), **shape)


def _format(dtype: torch.dtype, entry_bits: int) -> CacheFormat:
    plain: CacheFormat = "bfloat16" if dtype == torch.bfloat16 else "float16"
    formats: dict[int, CacheFormat] = {8: "fp8_e5m2", 16: plain, 32: "float32"}
    return formats[entry_bits]


def _attention(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    context = sizes(4096, 40)
    lengths = [(1, context)] * sizes(64, 2) if shape["tokens"] == "few" else [(context, context)]
    format = _format(dtype, shape["entry_bits"])
    return attention("prefill", lengths, format, device, dtype, sizes, head_dim=shape["columns"])


def _latents(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    context = sizes(4096, 30)
    # A tile of single tokens has as many rows as there are heads.
    lengths = [(1, context)] * sizes(64, 2)
    return latents("MLA", lengths, shape["rows"], _format(dtype, shape["entry_bits"]), device, dtype, sizes)


def _rows(rows: int, sizes: Sizes, many: int = 64) -> int:
    """Of a product: as many as a tile has, or a large batch's where that is the most."""
    return sizes(2048 if rows >= many else rows, rows)


def _product(activation_bits: int | None) -> Callable[..., Case]:
    def make(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
        bits, span = shape["bits"], shape["span"]
        group = None if bits == 8 else span
        size = sizes(4096, 48), sizes(14336, 320)
        rows = _rows(shape["rows"], sizes)
        return product("product", rows, *size, bits, group, activation_bits, device, dtype)

    return make


def _fp8(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    size = sizes(4096, 64), sizes(14336, 256)
    return fp8_product(_rows(shape["rows"], sizes, 128), *size, shape["block"] or None, device, dtype)


def _experts(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    num_experts, top_k = sizes(32, 4), sizes(4, 2)
    tokens = shape["rows"] * num_experts // top_k  # each expert has a tile's rows on average
    weights, by_bytes = shape["weights"].removesuffix(" by int8"), shape["weights"].endswith(" by int8")
    format = None if weights == "float" else weights
    group = 128 if weights == "int4" else None
    hidden = 2880 if weights == "mxfp4" else 2048  # of which the class's columns of a turn are the most that divide it
    return experts(
        tokens,
        num_experts,
        top_k,
        sizes(hidden, 128),
        sizes(hidden, 128),
        format,
        device,
        dtype,
        group,
        8 if by_bytes else None,
    )


def _projection(rows: int) -> Callable[..., Case]:
    def make(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
        made = gated if shape["gated"] else added
        wide = torch.float32 if shape["x_bits"] == 32 else dtype
        fp8 = shape["x_bits"] == 8
        return made(rows, sizes(shape["out"], 80), sizes(4096, 256), device, wide, group=shape.get("span"), fp8=fp8)

    return make


def _norm(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    wide = torch.float32 if shape["x_bits"] == 32 else dtype
    return norm(device, wide, sizes(16384, 3), sizes(shape["columns"], 64))


def _gate(device: torch.device, dtype: torch.dtype, sizes: Sizes, **shape: Any) -> Case:
    return gate(device, torch.float32 if shape["x_bits"] == 32 else dtype, sizes(16384, 3), sizes(14336, 40))


_MADE: dict[str, Callable[..., Case]] = {
    "norm_kernel": _norm,
    "gated_kernel": _gate,
    "attention_kernel": _attention,
    "latent_attention_kernel": _latents,
    "one_row_kernel": _projection(1),
    "few_rows_kernel": _projection(16),
    "quantized_few_rows_kernel": _projection(16),
    "product_kernel": _product(None),
    "rounded_product_kernel": _product(8),
    "fp8_product_kernel": _fp8,
    "expert_product_kernel": _experts,
}
