"""A paged cache for tests: every slot that no sequence owns holds NaN, blocks are handed out in random order."""

import itertools
from dataclasses import dataclass

import torch

from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache, write_kv


@dataclass
class Sequence:
    """The last tokens are new: queries [query_len, Hq, D], keys and values [seq_len, Hkv, D]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @property
    def query_len(self) -> int:
        return len(self.query)

    @property
    def seq_len(self) -> int:
        return len(self.key)


def random_sequence(
    query_len: int,
    seq_len: int,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Sequence:
    return Sequence(
        torch.randn(query_len, num_heads, head_dim).to(dtype),
        torch.randn(seq_len, num_kv_heads, head_dim).to(dtype),
        torch.randn(seq_len, num_kv_heads, head_dim).to(dtype),
    )


@dataclass
class Step:
    """Arguments of ``paged_attention``."""

    query: torch.Tensor
    cache: KVCache
    metadata: AttentionMetadata

    def double(self) -> "Step":
        """The same in float64, for the oracle, which reads the cache as exactly."""
        return Step(self.query.double(), self.cache, self.metadata)


def spread(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with others between them, as a column of a wider tensor has."""
    return torch.stack([x, torch.full_like(x, 3)], dim=-1)[..., 0]


def format_of(dtype: torch.dtype) -> CacheFormat:
    """Of a cache that stores a floating point type as it is."""
    return {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}[dtype]


def poison(cache: KVCache) -> None:
    """Make every slot read as NaN."""
    for entries, scales in ((cache.key, cache.key_scale), (cache.value, cache.value_scale)):
        if entries.dtype.itemsize == 1:
            entries.view(torch.uint8).fill_(0x7F)  # NaN in both 8 bit floating point types
        else:
            entries.fill_(torch.nan)
        if scales is not None:
            scales.fill_(torch.nan)


def step_of(
    sequences: list[Sequence],
    block_size: int,
    *,
    first_kept: list[int] | None = None,
    format: CacheFormat | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Step:
    """All sequences in one batch. Tokens before ``first_kept[i]`` are not in the cache, as if they slid out of it.

    ``format``: of the cache; None is the type of the keys. ``k_scale`` and ``v_scale``: of the cache.
    """
    first_kept = first_kept or [0] * len(sequences)
    _, num_kv_heads, head_dim = sequences[0].key.shape
    blocks_of = [-(-sequence.seq_len // block_size) for sequence in sequences]
    num_blocks = sum(blocks_of) + 3
    format = format or format_of(sequences[0].key.dtype)
    cache = allocate_kv_cache(num_blocks, block_size, num_kv_heads, head_dim, format, k_scale=k_scale, v_scale=v_scale)
    poison(cache)
    free = (torch.randperm(num_blocks - 1) + 1).tolist()  # block 0 is never owned
    block_table = torch.zeros(len(sequences), max(blocks_of) + 1, dtype=torch.int32)
    for row, (sequence, count, first) in enumerate(zip(sequences, blocks_of, first_kept, strict=True)):
        blocks = torch.tensor([free.pop() for _ in range(count)])
        positions = torch.arange(first, sequence.seq_len)
        slots = blocks[positions // block_size] * block_size + positions % block_size
        write_kv(sequence.key[first:], sequence.value[first:], cache, slots)
        skipped = first // block_size
        block_table[row, skipped:count] = blocks[skipped:].int()
    query_lens = [sequence.query_len for sequence in sequences]
    seq_lens = [sequence.seq_len for sequence in sequences]
    metadata = AttentionMetadata(
        query_start_loc=torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=block_table,
        query_lens_host=query_lens,
        seq_lens_host=seq_lens,
    )
    return Step(torch.cat([sequence.query for sequence in sequences]), cache, metadata)
