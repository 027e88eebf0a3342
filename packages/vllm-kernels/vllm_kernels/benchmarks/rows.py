"""Operations that go over rows once: norms, activations, embeddings, rotation, cache."""

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops import rounded
from vllm_kernels.ops.activation import gelu, silu_and_mul
from vllm_kernels.ops.cache import allocate_kv_cache
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.norm import fused_add_rms_norm, rms_norm
from vllm_kernels.ops.rotary import rope_and_cache

_EPS = 1e-6
_ROWS = slice(0, 16)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> list[Case]:
    """All of them; inputs are random and made here."""
    tokens = sizes(16384, 3)
    return [
        *(norm(device, dtype, tokens, hidden) for hidden in (sizes(1024, 48), sizes(4096, 64))),
        _added_norm(device, dtype, tokens, sizes(4096, 64)),
        _rounded_norm(device, dtype, tokens, sizes(4096, 64)),
        _gelu(device, dtype, tokens, sizes(4096, 64)),
        gate(device, dtype, tokens, sizes(14336, 40)),
        _lookup(device, dtype, tokens, sizes(4096, 64), sizes(128256, 11)),
        _rotation(device, dtype, tokens, sizes),
    ]


def norm(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> Case:
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    return Case(
        "rms_norm",
        f"{tokens} x {hidden}",
        lambda: rms_norm(x, weight, _EPS),
        lambda result: result[_ROWS],
        lambda: _exact_norm(x[_ROWS].double(), weight),
        4e-3,
        2 * x.nbytes,
        peer=lambda: torch.nn.functional.rms_norm(x, (hidden,), weight, _EPS),
        peer_name="torch rms_norm",
        goal=0.85,
    )


def _added_norm(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> Case:
    x, residual = (torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(hidden, device=device).to(dtype)
    return Case(
        "fused_add_rms_norm",
        f"{tokens} x {hidden}",
        lambda: fused_add_rms_norm(x, residual, weight, _EPS)[0],
        lambda result: result[_ROWS],
        lambda: _exact_norm((x[_ROWS] + residual[_ROWS]).double(), weight),
        4e-3,
        4 * x.nbytes,
        goal=0.85,
    )


def _rounded_norm(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int) -> Case:
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)

    def run() -> torch.Tensor:
        values, scales = rounded.rms_norm(x, weight, _EPS, torch.int8)
        return values[_ROWS] * scales[_ROWS, None]

    return Case(
        "rms_norm to int8",
        f"{tokens} x {hidden}",
        run,
        lambda result: result,
        lambda: _exact_norm(x[_ROWS].double(), weight),
        2e-2,  # a number is within 1/254 of the largest of its row
        x.nbytes + x.numel() + 4 * tokens,
        goal=0.85,
    )


def _gelu(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> Case:
    x = torch.randn(tokens, width, device=device).to(dtype)
    return Case(
        "gelu",
        f"{tokens} x {width}",
        lambda: gelu(x),
        lambda result: result[_ROWS],
        lambda: torch.nn.functional.gelu(x[_ROWS].double()),
        4e-3,
        2 * x.nbytes,
        peer=lambda: torch.nn.functional.gelu(x),
        peer_name="torch gelu",
        goal=0.85,
    )


def _exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + _EPS).sqrt() * weight.double()


def gate(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> Case:
    x = torch.randn(tokens, 2 * width, device=device).to(dtype)

    def exact() -> torch.Tensor:
        gate, value = x[_ROWS].double().chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * value

    return Case(
        "silu_and_mul",
        f"{tokens} x {width}",
        lambda: silu_and_mul(x),
        lambda result: result[_ROWS],
        exact,
        4e-3,
        x.nbytes * 3 // 2,
        goal=0.85,
    )


def _lookup(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, rows: int) -> Case:
    table = torch.randn(rows, hidden, device=device).to(dtype)
    ids = torch.randint(0, rows, (tokens,), device=device)
    return Case(
        "embedding",
        f"{tokens} x {hidden} of {rows}",
        lambda: embedding(ids, table),
        lambda result: result[_ROWS],
        lambda: table[ids[_ROWS]].double(),
        1e-12,
        2 * tokens * hidden * table.itemsize,
        peer=lambda: torch.nn.functional.embedding(ids, table),
        peer_name="torch embedding",
    )


def _rotation(device: torch.device, dtype: torch.dtype, tokens: int, sizes: Sizes) -> Case:
    heads, kv_heads, head_dim = sizes(32, 4), sizes(8, 2), sizes(128, 16)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    positions = torch.arange(tokens, device=device)
    angles = positions[:, None] / 10000 ** (torch.arange(0, head_dim, 2, device=device) / head_dim)
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    format = {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    cache = allocate_kv_cache(-(-tokens // 16), 16, kv_heads, head_dim, format, device)  # type: ignore[arg-type]
    keys = slice(heads * head_dim, (heads + kv_heads) * head_dim)

    def exact() -> torch.Tensor:
        """Keys of the first tokens: queries are turned in place, once more with every call."""
        key = qkv[_ROWS, keys].double().unflatten(1, (kv_heads, head_dim))
        first, second = key.chunk(2, dim=-1)
        cos, sin = (part[:, None].double() for part in table[_ROWS].chunk(2, dim=1))
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    return Case(
        "rope_and_cache",
        f"{tokens} tokens, {heads}+{kv_heads} heads of {head_dim}",
        lambda: rope_and_cache(qkv, heads, positions, table, cache, positions),
        lambda _: cache.key[:1].transpose(1, 2).flatten(0, 1)[_ROWS][:tokens],
        exact,
        4e-3,
        2 * qkv.nbytes,
    )
