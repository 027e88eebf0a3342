"""What paged attention works out once per step, on the host side, and reuses in every layer.

A call of torch's attention costs tens of microseconds however small it is, so sequences with one new token
(decode) are computed together. A result must still not depend on the other sequences: each is padded to a length that
follows from its own length alone, sequences of equal padded length share a call, and torch's kernel computes
each row of such a call by itself. Sequences with several new tokens (prefill) get calls of their own.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_kernels.ops.attention import AttentionMetadata

# Keys of a decode call, in numbers: a few MB of copies stay in the processor's cache until they are used. Measured with
# 32 sequences of 512 tokens, 8 KV heads of 128, bf16: 49 ms with this, 72 ms with four times as many.
DECODE_NUMBERS_PER_CALL = 1 << 20
# Queries of one prefill call. Bounds the memory of masks and explicit scores, and skips most of what is not visible.
PREFILL_TILE = 256


@dataclass(slots=True)
class DecodeCall:
    """Sequences with one new token and equal padded length, computed by one call.

    ``tokens`` [B] are rows of the query; ``slots`` [B * L] cache slots of the visible tokens, padded with the
    newest one; ``distance`` [B, L] key position minus query position; ``hidden`` [B, L] marks padding, None: none.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    distance: torch.Tensor
    hidden: torch.Tensor | None


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
    """A sequence with several new tokens. ``slots`` [L]: cache slots of all tokens that any of them sees."""

    slots: torch.Tensor
    tiles: list[PrefillTile]


@dataclass(slots=True)
class AttentionPlan:
    """All calls of a step."""

    decode: list[DecodeCall]
    prefill: list[PrefillCall]


def plan_for(metadata: AttentionMetadata, cache_shape: torch.Size, sliding_window: int | None) -> AttentionPlan:
    """Plan of a step, made at the first layer that asks. ``cache_shape``: of a key cache."""
    _, block_size, num_kv_heads, head_dim = cache_shape
    key = (block_size, num_kv_heads * head_dim, sliding_window)
    plan: AttentionPlan | None = metadata.plans.get(key)
    if plan is None:
        decode_tokens_per_call = DECODE_NUMBERS_PER_CALL // (num_kv_heads * head_dim)
        plan = metadata.plans[key] = _make_plan(metadata, block_size, sliding_window, decode_tokens_per_call)
    return plan


def padded_length(length: int) -> int:
    """``length`` rounded up by at most an eighth (or to a multiple of 16), so that similar lengths meet in one call."""
    step = max(16, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step


def _make_plan(
    metadata: AttentionMetadata, block_size: int, sliding_window: int | None, decode_tokens_per_call: int
) -> AttentionPlan:
    block_table = metadata.block_table.numpy()
    decode_groups: dict[int, list[tuple[int, int, int]]] = {}  # padded length -> (token, sequence, visible tokens)
    prefill: list[PrefillCall] = []
    token = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len == 1:
            visible = seq_len if sliding_window is None else min(seq_len, sliding_window)
            decode_groups.setdefault(padded_length(visible), []).append((token, seq, visible))
        elif query_len > 1:
            prefill.append(_prefill_call(token, query_len, seq_len, block_table[seq], block_size, sliding_window))
        token += query_len
    decode = []
    for length, members in decode_groups.items():
        per_call = max(1, decode_tokens_per_call // length)
        for start in range(0, len(members), per_call):
            decode.append(
                _decode_call(members[start : start + per_call], length, metadata.seq_lens_host, block_table, block_size)
            )
    return AttentionPlan(decode, prefill)


def _decode_call(
    members: list[tuple[int, int, int]], length: int, seq_lens: list[int], block_table: np.ndarray, block_size: int
) -> DecodeCall:
    tokens = np.array([token for token, _, _ in members], dtype=np.int64)
    seqs = np.array([seq for _, seq, _ in members], dtype=np.int64)
    visible = np.array([count for _, _, count in members], dtype=np.int64)[:, None]
    last = np.array([seq_lens[seq] - 1 for _, seq, _ in members], dtype=np.int64)[:, None]
    positions = np.minimum(last - visible + 1 + np.arange(length), last)
    slots = block_table[seqs[:, None], positions // block_size].astype(np.int64) * block_size + positions % block_size
    hidden = np.arange(length) >= visible
    return DecodeCall(
        tokens=torch.from_numpy(tokens),
        slots=torch.from_numpy(slots.reshape(-1)),
        distance=torch.from_numpy(positions - last),
        hidden=torch.from_numpy(hidden) if hidden.any() else None,
    )


def _prefill_call(
    token: int, query_len: int, seq_len: int, block_row: np.ndarray, block_size: int, sliding_window: int | None
) -> PrefillCall:
    first_query = seq_len - query_len
    window = seq_len if sliding_window is None else sliding_window
    first_key = max(0, first_query - window + 1)
    positions = np.arange(first_key, seq_len)
    slots = block_row[positions // block_size].astype(np.int64) * block_size + positions % block_size
    tiles = []
    for start in range(first_query, seq_len, PREFILL_TILE):
        end = min(start + PREFILL_TILE, seq_len)
        low = max(0, start - window + 1)
        distance = np.arange(low, end)[None, :] - np.arange(start, end)[:, None]
        tiles.append(
            PrefillTile(
                tokens=slice(token + start - first_query, token + end - first_query),
                keys=slice(low - first_key, end - first_key),
                distance=torch.from_numpy(distance),
                hidden=torch.from_numpy((distance > 0) | (distance <= -window)),
            )
        )
    return PrefillCall(torch.from_numpy(slots), tiles)
