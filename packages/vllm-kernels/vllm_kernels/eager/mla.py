import torch

from vllm_kernels.eager.cache import plain
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.mla import LatentCache
from vllm_kernels.reference.cache import to_storage


def write_latent(latent: torch.Tensor, key_rope: torch.Tensor, cache: LatentCache, slot_mapping: torch.Tensor) -> None:
    stored = to_storage(torch.cat([latent, key_rope], dim=1), cache.entries.dtype)
    written = slot_mapping >= 0
    rows = plain(cache.entries).view(-1, stored.shape[1])
    rows.index_copy_(0, slot_mapping[written], plain(stored)[written])


def latent_attention(
    query_latent: torch.Tensor,
    query_rope: torch.Tensor,
    cache: LatentCache,
    metadata: AttentionMetadata,
    scale: float,
) -> torch.Tensor:
    wide = torch.promote_types(query_latent.dtype, torch.float32)
    query = torch.cat([query_latent, query_rope], dim=2).to(wide) * scale
    rows = plain(cache.entries).view(-1, query.shape[2])
    result = torch.empty(query_latent.shape, dtype=query_latent.dtype, device=query_latent.device)
    first = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        if not query_len:
            continue
        blocks = metadata.block_table[seq, : -(-seq_len // cache.block_size)].long()
        if blocks.min() < 0 or blocks.max() >= cache.num_blocks:
            raise IndexError(f"block_table has a block outside of the cache's {cache.num_blocks}")
        position = torch.arange(seq_len, device=query.device)
        slots = blocks[position // cache.block_size] * cache.block_size + position % cache.block_size
        entries = rows[slots].view(cache.entries.dtype).to(wide)
        scores = query[first : first + query_len].transpose(0, 1) @ entries.T  # [H, query_len, seq_len]
        hidden = position > position[seq_len - query_len :, None]
        weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), dim=2)
        found = weights @ entries[:, : cache.lora_rank]
        result[first : first + query_len] = found.transpose(0, 1)
        first += query_len
    return result
