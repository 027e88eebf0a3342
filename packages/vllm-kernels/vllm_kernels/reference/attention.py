import torch

from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.reference.cache import entries_of


def paged_attention(
    query: torch.Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // cache.num_kv_heads
    result = torch.zeros_like(query) if out is None else out.zero_()
    token = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        for position in range(seq_len - query_len, seq_len):
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            visible = torch.arange(first, position + 1, device=query.device)
            blocks, offsets = metadata.block_table[seq, visible // cache.block_size].long(), visible % cache.block_size
            keys = entries_of(cache.key, cache.key_scale, blocks, offsets, wide, cache.k_scale)
            values = entries_of(cache.value, cache.value_scale, blocks, offsets, wide, cache.v_scale)
            keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))  # [L, Hq, D]
            scores = scale * torch.einsum("hd,lhd->hl", query[token].to(wide), keys)
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if alibi_slopes is not None:
                scores = scores + alibi_slopes.to(wide)[:, None] * (visible - position)
            if sinks is not None:
                scores = torch.cat([scores, sinks.to(wide)[:, None]], dim=1)
            weights = torch.softmax(scores, dim=1)[:, : len(visible)]
            result[token] = torch.einsum("hl,lhd->hd", weights, values).to(query.dtype)
            token += 1
    return result
