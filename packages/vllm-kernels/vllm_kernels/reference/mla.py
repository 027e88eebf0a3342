import torch

from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.mla import LatentCache
from vllm_kernels.reference.cache import to_storage


def write_latent(latent: torch.Tensor, key_rope: torch.Tensor, cache: LatentCache, slot_mapping: torch.Tensor) -> None:
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, cache.block_size)
            cache.entries[block, offset] = to_storage(torch.cat([latent[token], key_rope[token]]), cache.entries.dtype)


def latent_attention(
    query_latent: torch.Tensor,
    query_rope: torch.Tensor,
    cache: LatentCache,
    metadata: AttentionMetadata,
    scale: float,
) -> torch.Tensor:
    wide = torch.promote_types(query_latent.dtype, torch.float32)
    result = torch.zeros(query_latent.shape, dtype=query_latent.dtype, device=query_latent.device)
    token = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        for position in range(seq_len - query_len, seq_len):
            entries = torch.stack([entry_of(cache, metadata.block_table[seq], at) for at in range(position + 1)])
            latents, keys = entries.to(wide).split([cache.lora_rank, cache.rope_dim], dim=1)
            for head in range(query_latent.shape[1]):
                scores = latents @ query_latent[token, head].to(wide) + keys @ query_rope[token, head].to(wide)
                result[token, head] = (torch.softmax(scale * scores, dim=0) @ latents).to(result.dtype)
            token += 1
    return result


def entry_of(cache: LatentCache, blocks: torch.Tensor, position: int) -> torch.Tensor:
    """What is stored of a token: ``[lora_rank + rope_dim]``. Raises ``IndexError`` for a block outside the cache."""
    block = int(blocks[position // cache.block_size])
    if not 0 <= block < cache.num_blocks:
        raise IndexError(f"block_table has block {block} outside of the cache's {cache.num_blocks}")
    return cache.entries[block, position % cache.block_size]
