import torch

from vllm_kernels.cache_format import SCALED
from vllm_kernels.ops.cache import KVCache


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, cache.block_size)
        for head in range(cache.num_kv_heads):
            place = (block, head, offset)
            _store(over(key[token, head], cache.k_scale), cache.key, cache.key_scale, place, cache)
            _store(over(value[token, head], cache.v_scale), cache.value, cache.value_scale, place, cache)


def copy_blocks(cache: KVCache, sources: torch.Tensor, targets: torch.Tensor) -> None:
    for blocks in (sources, targets):
        check_inside("blocks", blocks, cache.num_blocks)
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        for tensor in (cache.key, cache.value, cache.key_scale, cache.value_scale):
            if tensor is not None:
                tensor[target] = tensor[source]


def gather_kv(cache: KVCache, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    check_inside("slots", slots.clamp(min=0), cache.num_blocks * cache.block_size)
    wide = torch.promote_types(dtype, torch.float32)
    found = torch.zeros(2, len(slots), cache.num_kv_heads, cache.head_dim, dtype=dtype, device=cache.key.device)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            block, offset = (torch.tensor([number]) for number in divmod(slot, cache.block_size))
            found[0, token] = entries_of(cache.key, cache.key_scale, block, offset, wide, cache.k_scale)[0]
            found[1, token] = entries_of(cache.value, cache.value_scale, block, offset, wide, cache.v_scale)[0]
    return found[0], found[1]


def check_inside(name: str, indices: torch.Tensor, size: int) -> None:
    """Raise ``IndexError`` unless all indices are 0 to ``size - 1``."""
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise IndexError(f"{name} must be 0 to {size - 1}, got {int(indices.min())} to {int(indices.max())}")


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


def over(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``x`` over the one scale of a cache, in fp32; ``x`` as it is where there is none."""
    # A tensor over a tensor of its shape: torch rounds the quotient of a tensor and a number twice.
    return x if scale == 1 else x.float() / torch.full_like(x, scale, dtype=torch.float32)


def to_storage(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Nearest number of a storage type, ties to the even one; 8 bit types saturate, and all but int8 keep NaN."""
    if dtype == torch.int8:
        return x.round().clamp(-127, 127).to(dtype)
    if dtype.itemsize == 1:
        x = x.float().clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return x.to(dtype)


def entries_of(
    entries: torch.Tensor,
    scales: torch.Tensor | None,
    blocks: torch.Tensor,
    offsets: torch.Tensor,
    wide: torch.dtype,
    scale: float = 1.0,
) -> torch.Tensor:
    """What was stored for tokens ``offsets`` of ``blocks``, in type ``wide``: [len(blocks), num_kv_heads, head_dim]."""
    found = entries.view(torch.uint8) if entries.dtype.itemsize == 1 else entries
    result = found[blocks, :, offsets].view(entries.dtype).to(wide) * scale
    return result if scales is None else result * scales[blocks, :, offsets, None].to(wide)
