from array import array
from itertools import accumulate

import torch

from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import attention as eager
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache

_paged_attention = Kernel("paged_attention", *[POINTER] * 11, *[INT64] * 8, FLOAT, FLOAT, INT32, INT32, INT32)
_check_block_table = Kernel("check_block_table", *[POINTER] * 3, *[INT64] * 5, POINTER)


class _Lengths:
    """Lengths of a step's sequences as C++ reads them, and whose blocks were found to be inside the cache."""

    __slots__ = ("checked", "query_starts", "seq_lens", "table")

    def __init__(self, metadata: AttentionMetadata) -> None:
        for query_len, seq_len in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True):
            if not 0 <= query_len <= seq_len:
                raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        self.query_starts = array("q", accumulate(metadata.query_lens_host, initial=0))
        self.seq_lens = array("q", metadata.seq_lens_host)
        table = metadata.block_table
        self.table = table if table.dtype == torch.int32 and table.is_contiguous() else table.int().contiguous()
        self.checked: set[tuple[int, int, int]] = set()

    def check(self, num_blocks: int, block_size: int, window: int) -> None:
        """Every block that layers with this window follow must be one of the cache. Raises ``IndexError``."""
        bad = array("q", (-1, -1))
        table = self.table
        _check_block_table.call(
            self.query_starts.buffer_info()[0],
            self.seq_lens.buffer_info()[0],
            table.data_ptr(),
            table.shape[1],
            table.shape[0],
            num_blocks,
            block_size,
            window,
            bad.buffer_info()[0],
        )
        if bad[0] >= 0:
            there = table[bad[0], bad[1]].item() if bad[1] < table.shape[1] else "none"
            raise IndexError(
                f"block_table must name one of {num_blocks} blocks for entry {bad[1]} of sequence {bad[0]}, got {there}"
            )
        self.checked.add((num_blocks, block_size, window))


def paged_attention(
    query: torch.Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    key, key_scale, value_scale = cache.key, cache.key_scale, cache.value_scale
    if query.dtype not in FLOATS or key.dtype not in DTYPES:
        return eager.paged_attention(query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks)
    lengths: _Lengths | None = metadata.plans.get("cpu")
    if lengths is None:
        lengths = metadata.plans["cpu"] = _Lengths(metadata)
    num_blocks, num_kv_heads, block_size, head_dim = key.shape
    window = sliding_window or 0
    if (num_blocks, block_size, window) not in lengths.checked:
        lengths.check(num_blocks, block_size, window)
    num_tokens, num_heads, _ = query.shape
    query_stride, head_stride, stride = query.stride()
    if head_stride != head_dim or stride != 1:
        query = query.contiguous()
        query_stride = num_heads * head_dim
    slopes, sink_logits = _floats(alibi_slopes), _floats(sinks)
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype)
    _paged_attention.call(
        query.data_ptr(),
        out.data_ptr(),
        key.data_ptr(),
        cache.value.data_ptr(),
        None if key_scale is None else key_scale.data_ptr(),
        None if value_scale is None else value_scale.data_ptr(),
        None if slopes is None else slopes.data_ptr(),
        None if sink_logits is None else sink_logits.data_ptr(),
        lengths.query_starts.buffer_info()[0],
        lengths.seq_lens.buffer_info()[0],
        lengths.table.data_ptr(),
        lengths.table.shape[1],
        lengths.table.shape[0],
        query_stride,
        num_heads,
        num_kv_heads,
        head_dim,
        block_size,
        window,
        scale,
        soft_cap or 0.0,
        DTYPES[query.dtype],
        DTYPES[key.dtype],
        torch.get_num_threads(),
    )
    return out


def _floats(per_head: torch.Tensor | None) -> torch.Tensor | None:
    """As C++ reads it: fp32, contiguous."""
    return None if per_head is None else per_head.float().contiguous()
