import torch
from torch.nn import functional

from vllm_kernels.cpu.attention_plan import DecodeCall, PrefillCall, plan_for
from vllm_kernels.ops.attention import AttentionMetadata


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    num_kv_heads = key_cache.shape[2]
    plan = plan_for(metadata, key_cache.shape, sliding_window)
    score = _Score(scale, soft_cap, _by_kv_head(alibi_slopes, num_kv_heads), _by_kv_head(sinks, num_kv_heads))
    keys, values = key_cache.flatten(0, 1).flatten(1), value_cache.flatten(0, 1).flatten(1)  # [slots, Hkv * D]
    result = torch.empty_like(query)  # plan covers every token: ops checks that the lengths add up
    for call in plan.decode:
        _decode(query, keys, values, call, score, num_kv_heads, result)
    for prefill in plan.prefill:
        _prefill(query, keys, values, prefill, score, num_kv_heads, result)
    return result


class _Score:
    """How a layer turns q . k into weights. ``alibi`` and ``sinks`` are [Hkv, G] in fp32 or None."""

    __slots__ = ("alibi", "scale", "sinks", "soft_cap")

    def __init__(
        self, scale: float, soft_cap: float | None, alibi: torch.Tensor | None, sinks: torch.Tensor | None
    ) -> None:
        self.scale, self.soft_cap, self.alibi, self.sinks = scale, soft_cap, alibi, sinks


def _by_kv_head(per_head: torch.Tensor | None, num_kv_heads: int) -> torch.Tensor | None:
    return None if per_head is None else per_head.float().view(num_kv_heads, -1)


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: DecodeCall,
    score: _Score,
    num_kv_heads: int,
    result: torch.Tensor,
) -> None:
    head_dim = query.shape[-1]
    batch, length = call.distance.shape
    # The query heads of one KV head stand where torch expects queries: each key is read once for all of them.
    q = query.index_select(0, call.tokens).view(batch, num_kv_heads, -1, head_dim)
    k = keys.index_select(0, call.slots).view(batch, length, num_kv_heads, head_dim).transpose(1, 2)
    v = values.index_select(0, call.slots).view(batch, length, num_kv_heads, head_dim).transpose(1, 2)
    if q.shape[2] == 1 and query.dtype != torch.float32:
        # torch's half precision products with a single row are so slow that widening the keys first pays: measured
        # with 32 sequences of 512 tokens, 8 heads of 64, bf16, 22 ms instead of 47.
        q, k, v = q.float(), k.float(), v.float()
    bias = None if score.alibi is None else score.alibi[None, :, :, None] * call.distance[:, None, None, :]
    hidden = None if call.hidden is None else call.hidden[:, None, None, :]
    sinks = None if score.sinks is None else score.sinks[None, :, :, None].expand(batch, -1, -1, 1)
    out = _attend(q, k, v, score, bias, hidden, sinks)
    result.index_copy_(0, call.tokens, out.reshape(batch, -1, head_dim).to(query.dtype))


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: PrefillCall,
    score: _Score,
    num_kv_heads: int,
    result: torch.Tensor,
) -> None:
    num_heads, head_dim = query.shape[1:]
    group = num_heads // num_kv_heads
    k = keys.index_select(0, call.slots).view(-1, num_kv_heads, head_dim).transpose(0, 1)  # [Hkv, L, D]
    v = values.index_select(0, call.slots).view(-1, num_kv_heads, head_dim).transpose(0, 1)

    for tile in call.tiles:
        q = query[tile.tokens].view(-1, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [Hkv, G, n, D]
        # KV heads stand as batch, and their query heads as heads that share one key by a stride of zero.
        tile_k = k[:, None, tile.keys].expand(-1, group, -1, -1)
        tile_v = v[:, None, tile.keys].expand(-1, group, -1, -1)
        bias = None if score.alibi is None else score.alibi[:, :, None, None] * tile.distance
        sinks = None if score.sinks is None else score.sinks[:, :, None, None].expand(-1, -1, q.shape[2], 1)
        out = _attend(q, tile_k, tile_v, score, bias, tile.hidden, sinks)
        result[tile.tokens] = out.permute(2, 0, 1, 3).reshape(-1, num_heads, head_dim)


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
        base = torch.zeros(scores_shape) if bias is None else bias.expand(scores_shape)
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
    """torch's attention has no place between product and softmax, so the scores are made explicit, in fp32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)).mul_(scale / soft_cap).tanh_().mul_(soft_cap)
    if bias is not None:
        scores = scores + bias
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return (torch.softmax(scores, dim=-1) @ v.to(wide)).to(q.dtype)
