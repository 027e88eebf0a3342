"""Causal attention over a paged KV cache (arXiv:2309.06180)."""

from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape
from vllm_kernels.ops.cache import KVCache


@dataclass(slots=True, eq=False)
class AttentionMetadata:
    """Which tokens of a step belong to which sequence, and where their keys and values are.

    The same object serves all layers of a KV cache group during one step. It must not change while in use.

    Args:
        query_start_loc: ``[num_seqs + 1]``, int32: tokens ``query_start_loc[i]`` to ``query_start_loc[i + 1]`` are
            sequence ``i``'s.
        seq_lens: ``[num_seqs]``, int32: tokens of each sequence in the cache, this step's included.
        block_table: ``[num_seqs, max_blocks]``, int32: block of each ``block_size`` tokens of a sequence. Entries
            beyond a sequence's length and those that slid out of the window are never followed.
        query_lens_host: new tokens per sequence, as Python integers.
        seq_lens_host: ``seq_lens`` as Python integers.
        common_prefix_len: the blocks of so many tokens at the start are the same in every row of the table, so that
            a face may read them once for all sequences. 0 where nothing is known of it.
        plans: what a face works out once per step and reuses in every layer. Faces only. A plan that has a
            ``refill(metadata)`` lives through one, others are dropped.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    query_lens_host: list[int]
    seq_lens_host: list[int]
    common_prefix_len: int = 0
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def refill(self, step: "AttentionMetadata") -> None:
        """Take over the contents of another step, in the same memory: a captured graph reads them there.

        Args:
            step: with the same query lengths, a block table that is no wider, and no shorter a common prefix. On a GPU
                it may have fewer sequences: the others are padding of length 0, which attends to nothing.

        Raises:
            ValueError: it does not fit.
            IndexError: as of ``paged_attention``, for the layers that have used this object.
        """
        count, width = step.block_table.shape
        padding = len(self.seq_lens_host) - count
        if step.query_lens_host != self.query_lens_host[:count] or width > self.block_table.shape[1]:
            raise ValueError("a step must have the query lengths of the one it follows, and no wider block table")
        if step.common_prefix_len < self.common_prefix_len:
            raise ValueError("a step must have as long a common prefix as the one it follows")
        if padding:
            self.seq_lens[count:].zero_()
        self.seq_lens[:count].copy_(step.seq_lens)
        self.block_table[:count, :width].copy_(step.block_table)
        self.refilled([*step.seq_lens_host, *[0] * padding])

    def refilled(self, seq_lens_host: list[int]) -> None:
        """Another step has been written into ``seq_lens`` and ``block_table``: let plans know.

        Args:
            seq_lens_host: as many as before.

        Raises:
            IndexError: as of ``refill``.
        """
        self.seq_lens_host[:] = seq_lens_host
        self.plans = {name: plan for name, plan in self.plans.items() if hasattr(plan, "refill")}
        for plan in self.plans.values():
            plan.refill(self)


def paged_attention(
    query: torch.Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of this step's tokens to the tokens of their sequence up to themselves.

    A token at position ``p`` sees positions ``max(0, p - sliding_window + 1)`` to ``p``; nothing else of the cache is
    read. Its keys and values must be written already. The result of a sequence does not depend on the others.
    For query head ``h`` with score ``s = scale * q . k``, in this order: ``s = soft_cap * tanh(s / soft_cap)``;
    ``s += alibi_slopes[h] * (key position - query position)``; softmax over the keys, with ``exp(sinks[h])`` added
    to its denominator.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, floating point. Keys and values of another format are
            converted where they are read.
        cache: from ``cache.allocate_kv_cache``; ``num_heads`` is a multiple of its ``num_kv_heads``, and query head
            ``h`` reads KV head ``h // (num_heads // num_kv_heads)``.
        metadata: of the step.
        scale: factor of the scores, usually ``head_dim ** -0.5``.
        sliding_window: tokens that a token sees, itself included; None for all.
        soft_cap: bound of the scores (Gemma 2, arXiv:2408.00118); None for none.
        alibi_slopes: ``[num_heads]``, floating point (ALiBi, arXiv:2108.12409); None for none.
        sinks: ``[num_heads]``, floating point: logit of a key without value (gpt-oss, arXiv:2508.10925); None for none.
        out: what the result is written to and returned: contiguous, of shape and dtype of ``query``; None for a new
            tensor.

    Returns:
        ``[num_tokens, num_heads, head_dim]``, dtype of ``query``.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
        IndexError: a block of the table that is followed lies outside the cache. On a GPU it reads as zeros.
    """
    _, num_kv_heads, _, head_dim = cache.key.shape
    check_shape("query", query, (None, None, head_dim))
    check_floating("query", query)
    num_tokens, num_heads, _ = query.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"query must have a multiple of num_kv_heads={num_kv_heads} heads, got {num_heads}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, got {sliding_window}")
    for name, per_head in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if per_head is not None:
            check_shape(name, per_head, (num_heads,))
    if out is not None:
        check_shape("out", out, tuple(query.shape))
        check_dtype("out", out, query.dtype)
        if not out.is_contiguous():
            raise ValueError("out must be contiguous")
    check_metadata(metadata, num_tokens, "query")
    result: torch.Tensor = face_of("attention", query.device).paged_attention(
        query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out
    )
    return result


def check_metadata(metadata: AttentionMetadata, num_tokens: int, query: str) -> None:
    """The metadata must be in itself consistent, and of ``num_tokens`` tokens of the argument named ``query``."""
    num_seqs = len(metadata.seq_lens_host)
    if len(metadata.query_lens_host) != num_seqs or metadata.block_table.shape[0] != num_seqs:
        raise ValueError(
            f"metadata is of {num_seqs} sequences, but has {len(metadata.query_lens_host)} query lengths and "
            f"{metadata.block_table.shape[0]} block table rows"
        )
    if sum(metadata.query_lens_host) != num_tokens:
        raise ValueError(f"metadata is of {sum(metadata.query_lens_host)} tokens, but {query} has {num_tokens}")
    if metadata.common_prefix_len:
        lengths = zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)
        shortest = min((seq_len for query_len, seq_len in lengths if query_len), default=0)
        if not 0 < metadata.common_prefix_len <= shortest:
            raise ValueError(f"common_prefix_len must be 0 to {shortest}, got {metadata.common_prefix_len}")
