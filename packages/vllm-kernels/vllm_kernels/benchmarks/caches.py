"""What is written to the caches of keys and values, copied in them and read from them."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.benchmarks.paged import BLOCK_SIZE, blocks_of, fill_cache
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache, copy_blocks, gather_kv, write_kv
from vllm_kernels.ops.mla import allocate_latent_cache, write_latent

_ROWS = slice(0, 8)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for."""
    plain: CacheFormat = "bfloat16" if dtype == torch.bfloat16 else "float16"
    tokens = sizes(16384, 40)
    yield _write(tokens, plain, 0.0, device, dtype, sizes)
    yield _write(tokens, "fp8_e5m2", 0.1, device, dtype, sizes)  # a rounded number is within 1/8 of itself
    yield _gather(tokens, plain, device, dtype, sizes)
    yield _copy(sizes(4096, 5), plain, device, dtype, sizes)
    yield _write_latents(tokens, plain, device, dtype, sizes)


def _cache(num_blocks: int, format: CacheFormat, device: torch.device, sizes: Sizes) -> KVCache:
    return allocate_kv_cache(num_blocks, BLOCK_SIZE, sizes(8, 2), sizes(128, 16), format, device)


def _tokens(tokens: int, cache: KVCache, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Keys, values, and slots in random order."""
    shape = tokens, cache.key.shape[1], cache.key.shape[3]
    return [
        *(torch.randn(shape, device=device).to(dtype) for _ in range(2)),
        torch.randperm(blocks_of(tokens) * BLOCK_SIZE, device=device)[:tokens],
    ]


def _entries(stored: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Those of some slots ``[n, num_kv_heads, head_dim]``, as numbers."""
    found = stored.view(torch.uint8) if stored.itemsize == 1 else stored
    return found[slots // BLOCK_SIZE, :, slots % BLOCK_SIZE].view(stored.dtype)


def _write(
    tokens: int, format: CacheFormat, tolerance: float, device: torch.device, dtype: torch.dtype, sizes: Sizes
) -> Case:
    cache = _cache(blocks_of(tokens), format, device, sizes)
    key, value, slots = _tokens(tokens, cache, device, dtype)

    def run() -> torch.Tensor:
        write_kv(key, value, cache, slots)
        return cache.value

    return Case(
        f"write_kv {format}",
        f"{tokens} tokens, {key.shape[1]} heads of {key.shape[2]}",
        run,
        lambda stored: _entries(stored, slots[_ROWS]),
        lambda: value[_ROWS].double(),
        tolerance,
        2 * key.nbytes + 2 * key.numel() * cache.key.itemsize,
    )


def _gather(tokens: int, format: CacheFormat, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    cache = _cache(blocks_of(tokens), format, device, sizes)
    key, value, slots = _tokens(tokens, cache, device, dtype)
    write_kv(key, value, cache, slots)
    return Case(
        f"gather_kv {format}",
        f"{tokens} tokens, {key.shape[1]} heads of {key.shape[2]}",
        lambda: gather_kv(cache, slots, dtype)[1],
        lambda result: result[_ROWS],
        lambda: value[_ROWS].double(),
        0.0,
        2 * key.nbytes + 2 * key.numel() * cache.key.itemsize,
    )


def _copy(blocks: int, format: CacheFormat, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    cache = _cache(2 * blocks, format, device, sizes)
    fill_cache(cache.key, cache.value)
    sources, targets = torch.randperm(2 * blocks, device=device).split(blocks)

    def run() -> torch.Tensor:
        copy_blocks(cache, sources, targets)
        return cache.value

    def by_torch() -> torch.Tensor:
        cache.key[targets] = cache.key[sources]
        cache.value[targets] = cache.value[sources]
        return cache.value

    return Case(
        f"copy_blocks {format}",
        f"{blocks} blocks of {BLOCK_SIZE} tokens",
        run,
        lambda stored: stored[targets[_ROWS]],
        lambda: cache.value[sources[_ROWS]].double(),
        0.0,
        cache.key.nbytes + cache.value.nbytes,  # half of it is read, the other half written
        peer=by_torch,
        peer_name="torch index",
    )


def _write_latents(tokens: int, format: CacheFormat, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    rank, rope = sizes(512, 32), sizes(64, 16)
    cache = allocate_latent_cache(blocks_of(tokens), BLOCK_SIZE, rank, rope, format, device)
    latent, key_rope = (torch.randn(tokens, width, device=device).to(dtype) for width in (rank, rope))
    slots = torch.randperm(blocks_of(tokens) * BLOCK_SIZE, device=device)[:tokens]

    def run() -> torch.Tensor:
        write_latent(latent, key_rope, cache, slots)
        return cache.entries

    return Case(
        f"write_latent {format}",
        f"{tokens} tokens of {rank} + {rope}",
        run,
        lambda stored: stored.flatten(0, 1)[slots[_ROWS]],
        lambda: torch.cat([latent[_ROWS], key_rope[_ROWS]], dim=1).double(),
        0.0,
        2 * (latent.nbytes + key_rope.nbytes),
    )
