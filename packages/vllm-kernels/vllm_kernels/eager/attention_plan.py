"""What paged attention works out once per step, on the host side, and reuses in every layer."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_kernels.eager.cache import rows_of
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.transfers import upload

# Keys of a decode chunk, in numbers: a few MB of copies stay in the processor's cache until they are used. Measured
# with 32 sequences of 512 tokens, 8 KV heads of 128, bf16: 49 ms with this, 72 ms with four times as many.
DECODE_NUMBERS_PER_CHUNK = 1 << 20
# Every sequence of a chunk starts at a multiple of so many tokens, which is one of 64 bytes whatever the heads are.
DECODE_ALIGNMENT = 32
# Queries of one prefill call. Bounds the memory of masks and explicit scores, and skips most of what is not visible.
PREFILL_TILE = 256


@dataclass(slots=True)
class DecodeChunk:
    """Sequences with one new token each, gathered together.

    ``tokens`` [B] are their rows of the query. ``rows`` are, for each KV head, the cache rows of all visible tokens,
    one sequence after the other, each filled up with its newest token; ``sizes`` are its visible tokens and the
    filling, alternating.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    sizes: list[int]


@dataclass(slots=True)
class PrefillTile:
    """Consecutive queries of one sequence. ``keys`` is their part of the gathered tokens.

    ``distance`` [n, L] key position minus query position; ``hidden`` [n, L] is True where the query may not look.
    """

    tokens: slice
    keys: slice
    distance: torch.Tensor
    hidden: torch.Tensor


@dataclass(slots=True)
class PrefillCall:
    """A sequence with several new tokens. ``rows``: for each KV head, the cache rows of all tokens that they see."""

    rows: torch.Tensor
    tiles: list[PrefillTile]


@dataclass(slots=True)
class AttentionPlan:
    """All work of a step."""

    decode: list[DecodeChunk]
    prefill: list[PrefillCall]


def plan_for(metadata: AttentionMetadata, cache: KVCache, sliding_window: int | None) -> AttentionPlan:
    """Plan of a step, made at the first layer that asks.

    Raises ``ValueError`` when a sequence has more new tokens than tokens.
    """
    key = (cache.block_size, cache.num_kv_heads, cache.head_dim, sliding_window)
    plan: AttentionPlan | None = metadata.plans.get(key)
    if plan is None:
        tokens_per_chunk = DECODE_NUMBERS_PER_CHUNK // (cache.num_kv_heads * cache.head_dim)
        plan = metadata.plans[key] = _make_plan(metadata, cache, sliding_window, tokens_per_chunk)
    return plan


def _make_plan(
    metadata: AttentionMetadata, cache: KVCache, sliding_window: int | None, tokens_per_chunk: int
) -> AttentionPlan:
    block_table = metadata.block_table.cpu().numpy()
    decode: list[tuple[int, int, int]] = []  # (token, sequence, visible tokens)
    prefill: list[PrefillCall] = []
    token = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        if query_len == 1:
            decode.append((token, seq, seq_len if sliding_window is None else min(seq_len, sliding_window)))
        elif query_len > 1:
            prefill.append(_prefill_call(token, query_len, seq_len, block_table[seq], cache, sliding_window))
        token += query_len
    chunks = []
    start = tokens = 0
    for i, (_, _, visible) in enumerate(decode):
        if i > start and tokens + visible > tokens_per_chunk:
            chunks.append(_decode_chunk(decode[start:i], metadata.seq_lens_host, block_table, cache))
            start, tokens = i, 0
        tokens += visible
    if start < len(decode):
        chunks.append(_decode_chunk(decode[start:], metadata.seq_lens_host, block_table, cache))
    return AttentionPlan(chunks, prefill)


def _decode_chunk(
    members: list[tuple[int, int, int]], seq_lens: list[int], block_table: NDArray[np.int32], cache: KVCache
) -> DecodeChunk:
    tokens, seqs, visible = np.array(members, dtype=np.int64).T
    last = np.array([seq_lens[seq] - 1 for _, seq, _ in members], dtype=np.int64)
    padded = -(-visible // DECODE_ALIGNMENT) * DECODE_ALIGNMENT
    # Offset of each gathered token in its own sequence's part, without a loop over sequences.
    offsets = np.arange(padded.sum()) - np.repeat(np.cumsum(padded) - padded, padded)
    positions = np.minimum(np.repeat(last - visible + 1, padded) + offsets, np.repeat(last, padded))
    rows = _rows(block_table[np.repeat(seqs, padded), positions // cache.block_size], positions, cache)
    sizes = np.stack([visible, padded - visible], axis=1).reshape(-1)
    there = upload(torch.from_numpy(np.ascontiguousarray(tokens)), cache.key.device)
    return DecodeChunk(there, rows, sizes.tolist())


def _prefill_call(
    token: int,
    query_len: int,
    seq_len: int,
    block_row: NDArray[np.int32],
    cache: KVCache,
    sliding_window: int | None,
) -> PrefillCall:
    first_query = seq_len - query_len
    window = seq_len if sliding_window is None else sliding_window
    first_key = max(0, first_query - window + 1)
    positions = np.arange(first_key, seq_len)
    tiles = []
    for start in range(first_query, seq_len, PREFILL_TILE):
        end = min(start + PREFILL_TILE, seq_len)
        low = max(0, start - window + 1)
        distance = np.arange(low, end)[None, :] - np.arange(start, end)[:, None]
        tiles.append(
            PrefillTile(
                tokens=slice(token + start - first_query, token + end - first_query),
                keys=slice(low - first_key, end - first_key),
                distance=upload(torch.from_numpy(distance), cache.key.device),
                hidden=upload(torch.from_numpy((distance > 0) | (distance <= -window)), cache.key.device),
            )
        )
    return PrefillCall(_rows(block_row[positions // cache.block_size], positions, cache), tiles)


def _rows(blocks: NDArray[np.int32], positions: NDArray[np.int64], cache: KVCache) -> torch.Tensor:
    slots = torch.from_numpy(blocks.astype(np.int64) * cache.block_size + positions % cache.block_size)
    return rows_of(upload(slots, cache.key.device), cache).view(-1)
