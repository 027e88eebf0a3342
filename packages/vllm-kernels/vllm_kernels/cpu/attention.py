from array import array
from itertools import accumulate

import torch

from vllm_kernels import batch_invariance
from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import attention as eager
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache

_paged_attention = Kernel("paged_attention", *[POINTER] * 11, *[INT64] * 8, FLOAT, FLOAT, *[INT32] * 4)
_check_block_table = Kernel("check_block_table", *[POINTER] * 3, *[INT64] * 5, POINTER, captured=False)

_TYPES = {dtype: DTYPES[dtype] for dtype in FLOATS}


class _Step:
    """A step's lengths as C++ reads them, and for which layers its blocks were found to be inside the cache.

    ``arguments``: addresses of the starts of queries, the lengths and the block table, its row length, the sequences.
    """

    __slots__ = ("arguments", "checked", "query_starts", "seq_lens", "table")

    def __init__(self, metadata: AttentionMetadata) -> None:
        for query_len, seq_len in zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True):
            if not 0 <= query_len <= seq_len:
                raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        self.query_starts = array("q", accumulate(metadata.query_lens_host, initial=0))
        self.seq_lens = array("q", metadata.seq_lens_host)
        self.table = metadata.block_table.int().contiguous()
        num_seqs, max_blocks = self.table.shape
        addresses = self.query_starts.buffer_info()[0], self.seq_lens.buffer_info()[0], self.table.data_ptr()
        self.arguments = (*addresses, max_blocks, num_seqs)
        self.checked: set[tuple[int, int, int]] = set()

    def refill(self, metadata: AttentionMetadata) -> None:
        """Take over the lengths and blocks of another step with the same query lengths, in the same memory."""
        if 0 in metadata.seq_lens_host:
            raise ValueError("a step on a CPU must have as many sequences as the one it follows")
        self.seq_lens[:] = array("q", metadata.seq_lens_host)
        if self.table is not metadata.block_table:
            self.table.copy_(metadata.block_table)
        for kind in list(self.checked):
            self.check(*kind)

    def check(self, num_blocks: int, block_size: int, window: int) -> None:
        """Every block that layers with this window follow must be one of the cache. Raises ``IndexError``."""
        bad = array("q", (-1, -1))
        _check_block_table.call(*self.arguments, num_blocks, block_size, window, bad.buffer_info()[0])
        seq, entry = bad
        if seq >= 0:
            got = self.table[seq, entry].item() if entry < self.table.shape[1] else "none"
            raise IndexError(
                f"block_table must name one of {num_blocks} blocks in entry {entry} of sequence {seq}, got {got}"
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
    out: torch.Tensor | None,
) -> torch.Tensor:
    if cache.has_static_scales:
        return eager.with_static_scales(
            paged_attention, query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out
        )
    key, key_scale, value_scale = cache.key, cache.key_scale, cache.value_scale
    query_type, storage = _TYPES.get(query.dtype), DTYPES.get(key.dtype)
    if query_type is None or storage is None:
        return eager.paged_attention(query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out)
    step: _Step | None = metadata.plans.get("cpu")
    if step is None:
        step = metadata.plans["cpu"] = _Step(metadata)
    num_blocks, num_kv_heads, block_size, head_dim = key.shape
    window = sliding_window or 0
    if (num_blocks, block_size, window) not in step.checked:
        step.check(num_blocks, block_size, window)
    query_stride, head_stride, stride = query.stride()
    if head_stride != head_dim or stride != 1:
        query = query.contiguous()
        query_stride = query.stride(0)
    slopes, sink_logits = _floats(alibi_slopes), _floats(sinks)
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)  # half the time of torch.empty
    _paged_attention.call(
        query.data_ptr(),
        out.data_ptr(),
        key.data_ptr(),
        cache.value.data_ptr(),
        None if key_scale is None else key_scale.data_ptr(),
        None if value_scale is None else value_scale.data_ptr(),
        None if slopes is None else slopes.data_ptr(),
        None if sink_logits is None else sink_logits.data_ptr(),
        *step.arguments,
        query_stride,
        query.shape[1],
        num_kv_heads,
        head_dim,
        block_size,
        window,
        scale,
        soft_cap or 0.0,
        query_type,
        storage,
        batch_invariance.enabled(),
        torch.get_num_threads(),
    )
    return out


def _floats(per_head: torch.Tensor | None) -> torch.Tensor | None:
    """As C++ reads it: fp32, contiguous."""
    return None if per_head is None else per_head.float().contiguous()
