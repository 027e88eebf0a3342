"""Paged attention: decode, whole prompts, and both in one step."""

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.benchmarks.paged import BLOCK_SIZE, blocks_of, fill_cache, hand_out, metadata_of
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> list[Case]:
    """All of them; inputs are random and made here."""
    plain: CacheFormat = "bfloat16" if dtype == torch.bfloat16 else "float16"
    context = sizes(4096, 40)
    return [
        attention("decode attention", [(1, context)] * sizes(64, 3), plain, device, dtype, sizes, goal=0.8),
        attention("decode attention", [(1, sizes(32768, 520))], plain, device, dtype, sizes),
        attention("decode attention", [(1, context)] * sizes(64, 3), "fp8_e5m2", device, dtype, sizes),
        attention("prefill attention", [(sizes(8192, 40),) * 2], plain, device, dtype, sizes, goal=0.6),
        attention(
            "mixed attention",
            [(1, context)] * sizes(48, 2) + [(sizes(1024, 20), sizes(2048, 30))] * sizes(4, 1),
            plain,
            device,
            dtype,
            sizes,
        ),
    ]


def attention(
    name: str,
    lengths: list[tuple[int, int]],
    format: CacheFormat,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    goal: float | None = None,
    head_dim: int = 128,
) -> Case:
    """``lengths``: new and all tokens of each sequence. ``head_dim``: of a real shape."""
    heads, kv_heads, head_dim = sizes(32, 4), sizes(8, 2), sizes(head_dim, 16)
    query_lens, seq_lens = [new for new, _ in lengths], [known for _, known in lengths]
    query = torch.randn(sum(query_lens), heads, head_dim, device=device).to(dtype)
    cache, metadata = _cached(query_lens, seq_lens, kv_heads, head_dim, format, device)
    scale = head_dim**-0.5
    # Whole prompts are long enough to be compared with one call of torch's for each sequence.
    alone = len(lengths) == 1 and query_lens == seq_lens
    pairs = sum(new * known - new * (new - 1) // 2 for new, known in lengths)
    entries = sum(seq_lens) * kv_heads * head_dim * cache.key.itemsize * 2

    def by_torch() -> torch.Tensor:
        # The cache's own tokens, in order, as one sequence; made once.
        return torch.nn.functional.scaled_dot_product_attention(
            torch_query, torch_key, torch_value, is_causal=True, enable_gqa=True
        )

    if alone:
        torch_query = query.transpose(0, 1)[None]
        keys, values = _tokens(cache, metadata, 0, seq_lens[0], dtype)
        torch_key, torch_value = keys.transpose(0, 1)[None].contiguous(), values.transpose(0, 1)[None].contiguous()
    return Case(
        f"{name} {format}",
        f"{len(lengths)} sequences, {sum(query_lens)} of {sum(seq_lens)} tokens",
        lambda: paged_attention(query, cache, metadata, scale=scale),
        lambda result: result[-1:],
        lambda: _last_row(query, cache, metadata, scale),
        1e-2,
        entries + 2 * query.nbytes,
        4 * pairs * heads * head_dim,
        "matrix" if name.startswith("prefill") else "memory",
        peer=by_torch if alone else None,
        peer_name="scaled_dot_product_attention" if alone else "",
        goal=goal,
    )


def _cached(
    query_lens: list[int],
    seq_lens: list[int],
    kv_heads: int,
    head_dim: int,
    format: CacheFormat,
    device: torch.device,
) -> tuple[KVCache, AttentionMetadata]:
    """Random keys and values in blocks that are handed out in random order, and the step's metadata."""
    table, _ = hand_out(seq_lens)
    cache = allocate_kv_cache(sum(map(blocks_of, seq_lens)) + 1, BLOCK_SIZE, kv_heads, head_dim, format, device)
    fill_cache(cache.key, cache.value)
    return cache, metadata_of(query_lens, seq_lens, table, device)


def _tokens(
    cache: KVCache, metadata: AttentionMetadata, seq: int, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a sequence ``[length, kv_heads, head_dim]``, from a cache without scales."""
    positions = torch.arange(length, device=cache.key.device)
    blocks, offsets = metadata.block_table[seq, positions // BLOCK_SIZE].long(), positions % BLOCK_SIZE
    found = []
    for entries in (cache.key, cache.value):
        stored = entries.view(torch.uint8) if entries.itemsize == 1 else entries
        found.append(stored[blocks, :, offsets].view(entries.dtype).to(dtype))
    return found[0], found[1]


def _last_row(query: torch.Tensor, cache: KVCache, metadata: AttentionMetadata, scale: float) -> torch.Tensor:
    """The last token of the last sequence, in float64: it sees all of its sequence."""
    seq = len(metadata.seq_lens_host) - 1
    keys, values = _tokens(cache, metadata, seq, metadata.seq_lens_host[-1], torch.float64)
    group = query.shape[1] // cache.num_kv_heads
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    weights = torch.softmax(scale * torch.einsum("hd,lhd->hl", query[-1].double(), keys), dim=1)
    return torch.einsum("hl,lhd->hd", weights, values)[None]
