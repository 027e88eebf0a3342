from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from vllm_kernels.eager.attention_plan import DecodeChunk, PrefillCall, plan_for
from vllm_kernels.eager.cache import plain
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache


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
    if cache.has_static_scales:
        return with_static_scales(
            paged_attention, query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out
        )
    num_kv_heads = cache.num_kv_heads
    plan = plan_for(metadata, cache, sliding_window)
    score = _Score(scale, soft_cap, _by_kv_head(alibi_slopes, num_kv_heads), _by_kv_head(sinks, num_kv_heads))
    # The plan covers every token: ops checks that lengths add up.
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    for chunk in plan.decode:
        _decode(query, cache, chunk, score, result)
    for call in plan.prefill:
        _prefill(query, cache, call, score, result)
    return result


def with_static_scales(
    attend: Callable[..., torch.Tensor],
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
    """Attention by a function that knows nothing of ``k_scale`` and ``v_scale``: in fp32, around it, rounded once."""
    entries = cache.memo.get("without static scales")
    if entries is None:
        entries = cache.memo["without static scales"] = KVCache(cache.key, cache.value)
    wide = query.to(torch.promote_types(query.dtype, torch.float32))
    result = attend(
        wide, entries, metadata, scale * cache.k_scale, sliding_window, soft_cap, alibi_slopes, sinks, None
    ).mul_(cache.v_scale)
    return result.to(query.dtype) if out is None else out.copy_(result)


class _Score:
    """How a layer turns q . k into weights. ``alibi`` and ``sinks`` are [Hkv, G, 1] in fp32 or None."""

    __slots__ = ("alibi", "scale", "sinks", "soft_cap")

    def __init__(
        self, scale: float, soft_cap: float | None, alibi: torch.Tensor | None, sinks: torch.Tensor | None
    ) -> None:
        self.scale, self.soft_cap, self.alibi, self.sinks = scale, soft_cap, alibi, sinks


def _by_kv_head(per_head: torch.Tensor | None, num_kv_heads: int) -> torch.Tensor | None:
    return None if per_head is None else per_head.float().view(num_kv_heads, -1, 1)


def _gather(cache: KVCache, rows: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Keys and values of the rows for all KV heads [Hkv * L], as numbers of ``dtype`` [Hkv, L, D]."""
    for entries, scales in ((cache.key, cache.key_scale), (cache.value, cache.value_scale)):
        found = plain(entries).view(-1, cache.head_dim).index_select(0, rows).view(entries.dtype)
        if scales is not None:
            found = found.float() * scales.view(-1).index_select(0, rows)[:, None]
        yield found.to(dtype).view(cache.num_kv_heads, -1, cache.head_dim)


def _decode(
    query: torch.Tensor,
    cache: KVCache,
    chunk: DecodeChunk,
    score: _Score,
    result: torch.Tensor,
) -> None:
    """Keys are gathered for all sequences of the chunk at once, but each is attended to by a call of its own.

    One call for sequences of equal padded length would save 15 us each, but in torch's kernel and the matrix products
    below it, last bits depend on which thread gets a row of the batch (seen in fp32 with two threads).
    """
    num_kv_heads, head_dim = cache.num_kv_heads, cache.head_dim
    # The query heads of one KV head stand where torch expects queries: each key is read once for all of them.
    q = query.index_select(0, chunk.tokens).view(-1, num_kv_heads, query.shape[1] // num_kv_heads, head_dim)
    k, v = _gather(cache, chunk.rows, query.dtype)  # [Hkv, L, D]
    if q.shape[2] == 1 and query.dtype != torch.float32:
        # torch's half precision products with a single row are so slow that widening the keys first pays: measured
        # with 32 sequences of 512 tokens, 8 heads of 64, bf16, 22 ms instead of 47.
        q, k, v = q.float(), k.float(), v.float()
    sinks = None if score.sinks is None else score.sinks[None]
    outs = []
    for one_q, one_k, one_v in zip(
        _aligned_rows(q),
        k[None].split(chunk.sizes, dim=2)[::2],
        v[None].split(chunk.sizes, dim=2)[::2],
        strict=True,
    ):
        bias = None if score.alibi is None else score.alibi[None] * torch.arange(1 - one_k.shape[2], 1, device=k.device)
        outs.append(_attend(one_q, one_k, one_v, score, bias, None, sinks))
    result.index_copy_(0, chunk.tokens, torch.cat(outs).view(len(outs), -1, head_dim).to(query.dtype))


def _aligned_rows(q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of ``q`` [B, Hkv, G, D] as [1, Hkv, G, D]; the bits of a matrix product may depend on 64 byte alignment."""
    rows = q.split(1)
    return rows if q[0].nbytes % 64 == 0 else tuple(row.clone() for row in rows)


def _prefill(
    query: torch.Tensor,
    cache: KVCache,
    call: PrefillCall,
    score: _Score,
    result: torch.Tensor,
) -> None:
    num_kv_heads, head_dim = cache.num_kv_heads, cache.head_dim
    group = query.shape[1] // num_kv_heads
    k, v = _gather(cache, call.rows, query.dtype)  # [Hkv, L, D]
    for tile in call.tiles:
        q = query[tile.tokens].view(-1, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [Hkv, G, n, D]
        # KV heads stand as batch, and their query heads as heads that share one key by a stride of zero.
        tile_k = k[:, None, tile.keys].expand(-1, group, -1, -1)
        tile_v = v[:, None, tile.keys].expand(-1, group, -1, -1)
        bias = None if score.alibi is None else score.alibi[..., None] * tile.distance
        sinks = None if score.sinks is None else score.sinks[..., None].expand(-1, -1, q.shape[2], 1)
        out = _attend(q.contiguous(), tile_k, tile_v, score, bias, tile.hidden, sinks)
        result[tile.tokens] = out.permute(2, 0, 1, 3).reshape(q.shape[2], -1, head_dim)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: _Score,
    bias: torch.Tensor | None,
    hidden: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of 4-d tensors. ``bias`` and ``hidden`` broadcast to the scores; ``sinks`` is one more column."""
    if sinks is not None:
        # A key and a value of zeros, whose score is the bias alone: the definition of a sink.
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        scores_shape = (*q.shape[:3], k.shape[2] - 1)
        base = torch.zeros(scores_shape, device=q.device) if bias is None else bias.expand(scores_shape)
        if hidden is not None:
            base = base.masked_fill(hidden, float("-inf"))
        bias, hidden = torch.cat([base, sinks], dim=-1), None
    if score.soft_cap is not None:
        return _attend_capped(q, k, v, score.scale, score.soft_cap, bias, hidden)
    mask = bias
    if hidden is not None:
        mask = ~hidden if bias is None else bias.masked_fill(hidden, float("-inf"))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=score.scale)


def _attend_capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    soft_cap: float,
    bias: torch.Tensor | None,
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """torch's attention has no place between product and softmax, so the scores are made explicit, in fp32.

    One entry of the first dimension (sequence or KV head) at a time: that bounds the memory of the scores, and the bits
    of a batched matrix product depend on the size of the batch.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    result = torch.empty_like(q)
    shape = (*q.shape[:3], k.shape[2])
    bias = None if bias is None else bias.expand(shape)
    hidden = None if hidden is None else hidden.expand(shape)
    for i in range(len(q)):
        scores = (q[i].to(wide) @ k[i].to(wide).transpose(1, 2)).mul_(scale / soft_cap).tanh_().mul_(soft_cap)
        if bias is not None:
            scores += bias[i]
        if hidden is not None:
            scores.masked_fill_(hidden[i], float("-inf"))
        result[i] = torch.softmax(scores, dim=-1) @ v[i].to(wide)
    return result
