import torch

from vllm_kernels.cache_format import SCALED
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.reference.cache import check_inside, over, to_storage


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    store(over(key, cache.k_scale), over(value, cache.v_scale), cache, slot_mapping)


def store(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    """``write_kv`` of what is over the cache's one scale already."""
    written = slot_mapping >= 0
    if not written.all():
        key, value, slot_mapping = key[written], value[written], slot_mapping[written]
    rows = rows_of(slot_mapping, cache).view(-1)
    for x, entries, scales in ((key, cache.key, cache.key_scale), (value, cache.value, cache.value_scale)):
        if scales is not None:
            x, scale = _scaled(x, SCALED[cache.format])
            scales.view(-1).index_copy_(0, rows, scale.transpose(0, 1).reshape(-1))
        stored = to_storage(x, entries.dtype).transpose(0, 1).reshape(-1, cache.head_dim)
        plain(entries).view(-1, cache.head_dim).index_copy_(0, rows, plain(stored))


def copy_blocks(cache: KVCache, sources: torch.Tensor, targets: torch.Tensor) -> None:
    for blocks in (sources, targets):
        check_inside("blocks", blocks, cache.num_blocks)
    for tensor in (cache.key, cache.value, cache.key_scale, cache.value_scale):
        if tensor is not None:
            entries = plain(tensor)
            entries.index_copy_(0, targets, entries.index_select(0, sources))


def gather_kv(cache: KVCache, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    inside = slots.clamp(min=0)
    check_inside("slots", inside, cache.num_blocks * cache.block_size)
    rows = rows_of(inside, cache).T.reshape(-1)
    wide = torch.promote_types(dtype, torch.float32)
    found = []
    for entries, scales, scale in (
        (cache.key, cache.key_scale, cache.k_scale),
        (cache.value, cache.value_scale, cache.v_scale),
    ):
        chosen = plain(entries).view(-1, cache.head_dim).index_select(0, rows).view(entries.dtype)
        if scales is not None:
            chosen = chosen.to(wide) * scales.view(-1).index_select(0, rows)[:, None].to(wide)
        if scale != 1:
            chosen = chosen.to(wide) * scale
        tokens = chosen.to(dtype).view(len(slots), cache.num_kv_heads, cache.head_dim)
        found.append(torch.where((slots >= 0)[:, None, None], tokens, 0.0))
    return found[0], found[1]


def rows_of(slots: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """Rows of ``[num_blocks * num_kv_heads * block_size, head_dim]`` where slots [n] are: int64 [num_kv_heads, n]."""
    _, num_kv_heads, block_size, _ = cache.key.shape
    first = slots + slots.div(block_size, rounding_mode="floor") * (block_size * (num_kv_heads - 1))
    return first + torch.arange(num_kv_heads, device=slots.device)[:, None] * block_size


def plain(entries: torch.Tensor) -> torch.Tensor:
    """As a type that torch can gather and scatter: it lacks those for some 8 bit ones."""
    return entries.view(torch.uint8) if entries.dtype.itemsize == 1 else entries


def _scaled(x: torch.Tensor, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [T, Hkv, D] over its scales, and the scales [T, Hkv]."""
    x = x.float()
    scale = x.abs().amax(-1) / largest
    scale = torch.where(scale == 0, 1.0, torch.where(scale.isfinite(), scale, torch.nan))
    return (x / scale[..., None]).nan_to_num_(0.0), scale
