"""Attention to latents (MLA), of an eighth of DeepSeek-V3's heads and of all of them."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Bound, Case, Sizes
from vllm_kernels.benchmarks.paged import BLOCK_SIZE, blocks_of, fill_cache, hand_out, metadata_of
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.mla import allocate_latent_cache, latent_attention


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for."""
    plain: CacheFormat = "bfloat16" if dtype == torch.bfloat16 else "float16"
    context = sizes(4096, 40)
    decode, prompt = [(1, context)] * sizes(64, 3), [(sizes(4096, 30),) * 2]
    yield latents("decode MLA", decode, sizes(16, 2), plain, device, dtype, sizes)
    yield latents("decode MLA", decode, sizes(128, 4), plain, device, dtype, sizes, "matrix")
    yield latents("decode MLA", decode, sizes(16, 2), "fp8_e5m2", device, dtype, sizes)
    yield latents("prefill MLA", prompt, sizes(16, 2), plain, device, dtype, sizes, "matrix")


def latents(
    name: str,
    lengths: list[tuple[int, int]],
    heads: int,
    format: CacheFormat,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    bound: Bound = "memory",
) -> Case:
    """``lengths``: new and all tokens of each sequence."""
    rank, rope = sizes(512, 32), sizes(64, 16)
    query_lens, seq_lens = [new for new, _ in lengths], [known for _, known in lengths]
    table, slots = hand_out(seq_lens)
    cache = allocate_latent_cache(sum(map(blocks_of, seq_lens)) + 1, BLOCK_SIZE, rank, rope, format, device)
    fill_cache(cache.entries)
    metadata = metadata_of(query_lens, seq_lens, table, device)
    query = torch.randn(sum(query_lens), heads, rank, device=device).to(dtype)
    query_rope = torch.randn(sum(query_lens), heads, rope, device=device).to(dtype)
    scale = (rank + rope) ** -0.5
    last = slots[-1].to(device)

    def exact() -> torch.Tensor:
        """The last token of the last sequence: it sees all of its sequence."""
        found = cache.entries.view(torch.uint8) if cache.entries.itemsize == 1 else cache.entries
        known = found.flatten(0, 1)[last].view(cache.entries.dtype).to(dtype).double()
        whole = torch.cat([query[-1], query_rope[-1]], dim=1).double()
        return (torch.softmax(scale * whole @ known.T, dim=1) @ known[:, :rank])[None]

    pairs = sum(new * known - new * (new - 1) // 2 for new, known in lengths)
    return Case(
        f"{name} {format}",
        f"{len(lengths)} sequences, {sum(query_lens)} of {sum(seq_lens)} tokens, {heads} heads",
        lambda: latent_attention(query, query_rope, cache, metadata, scale=scale),
        lambda result: result[-1:],
        exact,
        1e-2,
        sum(seq_lens) * (rank + rope) * cache.entries.itemsize + 2 * query.nbytes + query_rope.nbytes,
        2 * pairs * heads * (2 * rank + rope),
        bound,
    )
