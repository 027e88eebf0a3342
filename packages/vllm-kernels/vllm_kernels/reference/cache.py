import torch

from vllm_kernels.cache_format import SCALED
from vllm_kernels.ops.cache import KVCache


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, cache.block_size)
        for head in range(cache.num_kv_heads):
            _store(key[token, head], cache.key, cache.key_scale, (block, head, offset), cache)
            _store(value[token, head], cache.value, cache.value_scale, (block, head, offset), cache)


def _store(
    x: torch.Tensor, entries: torch.Tensor, scales: torch.Tensor | None, place: tuple[int, int, int], cache: KVCache
) -> None:
    """One head of one token: ``x`` [head_dim]."""
    if scales is not None:
        x = x.float()
        scale = x.abs().max() / SCALED[cache.format]
        if scale == 0:
            scale = torch.ones(())
        if not scale.isfinite():
            scale, x = scale.new_tensor(torch.nan), torch.zeros_like(x)
        else:
            x = x / scale
        scales[place] = scale
    entries[place] = to_storage(x, entries.dtype)


def to_storage(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Nearest number of a storage type, ties to the even one; 8 bit types saturate, and all but int8 keep NaN."""
    if dtype == torch.int8:
        return x.round().clamp(-127, 127).to(dtype)
    if dtype.itemsize == 1:
        x = x.float().clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return x.to(dtype)


def entries_of(
    entries: torch.Tensor, scales: torch.Tensor | None, blocks: torch.Tensor, offsets: torch.Tensor, wide: torch.dtype
) -> torch.Tensor:
    """What was stored for tokens ``offsets`` of ``blocks``, in type ``wide``: [len(blocks), num_kv_heads, head_dim]."""
    found = entries.view(torch.uint8) if entries.dtype.itemsize == 1 else entries
    result = found[blocks, :, offsets].view(entries.dtype).to(wide)
    return result if scales is None else result * scales[blocks, :, offsets, None].to(wide)
