from typing import Any

import torch
import triton
import triton.language as tl

from vllm_kernels.cache_format import SCALED, CacheFormat
from vllm_kernels.eager import cache as eager
from vllm_kernels.ops.cache import STORAGE, KVCache
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two

LARGEST: dict[CacheFormat, float] = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
"""Largest number of the 8 bit formats without scales: what is beyond it saturates."""
COPIED = 2048
"""Words that a program copies of a block of keys, and of values."""


@triton.jit
def head_scale(largest_entry, num_unusual, LARGEST: tl.constexpr):
    """Scale of a head for each row: NaN where an entry is not finite, 1 where all are zero."""
    scale = largest_entry / LARGEST
    scale = tl.where(scale == 0.0, 1.0, scale)
    return tl.where(num_unusual > 0, float("nan"), scale)


@triton.jit
def to_entry(values, FORMAT: tl.constexpr, LARGEST: tl.constexpr, entries):
    """fp32 values as entries of a cache, before scales: rounded to nearest even; 8 bits saturate and keep NaN."""
    if FORMAT == "int8":
        # Adding and taking away 1.5 * 2^23 rounds to whole numbers, ties to the even one.
        values = (values + 12582912.0) - 12582912.0
        values = tl.where(values > 127.0, 127.0, tl.where(values < -127.0, -127.0, values))
    elif LARGEST > 0.0:
        values = tl.where(values > LARGEST, LARGEST, tl.where(values < -LARGEST, -LARGEST, values))
        values = rounded_to_fp8(values, LARGEST)
    return values.to(entries.dtype.element_ty)


@triton.jit
def from_entry(entries, kind: tl.constexpr):
    """Entries of a cache, without scales, as floats of another type.

    Those of 8 bits by way of fp16, which is exact: Triton's own way from e5m2 to bf16 makes their NaN 114688. And fp16
    becomes bf16 by way of fp32: the one instruction for it does 16 numbers a clock, those two 64 and 128.
    """
    if entries.dtype.is_fp8():
        entries = entries.to(tl.float16)
    if entries.dtype == tl.float16 and kind == tl.bfloat16:
        entries = entries.to(tl.float32)
    return entries.to(kind)


@triton.jit
def rounded_to_fp8(values, LARGEST: tl.constexpr):
    """fp32 values rounded to those of e4m3 (LARGEST 448) or e5m2, so that the conversion has nothing left to round.

    The processor would round as well; Triton's interpreter would not, and tests hold both to the same bits.
    """
    DROPPED: tl.constexpr = 20 if LARGEST == 448.0 else 21  # of the 23 bits of the fraction
    LEAST: tl.constexpr = 0.015625 if LARGEST == 448.0 else 0.00006103515625  # normal number
    MAGIC: tl.constexpr = 24576.0 if LARGEST == 448.0 else 192.0  # 1.5 * 2^23 steps of the subnormal numbers
    bits = values.to(tl.uint32, bitcast=True)
    bits = bits + (2 ** (DROPPED - 1) - 1) + ((bits >> DROPPED) & 1)
    normal = ((bits >> DROPPED) << DROPPED).to(tl.float32, bitcast=True)
    subnormal = (values + MAGIC) - MAGIC
    result = tl.where(tl.abs(values) < LEAST, subnormal, normal)
    return tl.where(values == values, result, values)


@triton.jit
def unusual(values):
    """1 for an infinity or NaN, else 0."""
    return tl.where(tl.abs(values) < float("inf"), 0, 1)


@triton.jit(do_not_specialize=["num_slots"])
def write_kernel(
    key,
    value,
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    slots,
    key_stride,
    value_stride,
    num_slots,
    k_factor,
    v_factor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FORMAT: tl.constexpr,
    LARGEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Keys and values of ROWS heads of one token go to the token's slot; over one scale each, where one is given."""
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    slot = tl.load(slots + token)
    heads = head < tl.where((slot >= 0) & (slot < num_slots), HEADS, 0)  # none of a token without a slot
    present = heads[:, None] & (column < HEAD_DIM)[None, :]
    row = ((slot // BLOCK_SIZE) * HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    source = head[:, None] * HEAD_DIM + column[None, :]
    target = row[:, None] * HEAD_DIM + column[None, :]
    keys = tl.load(key + token * key_stride + source, mask=present, other=0.0).to(tl.float32)
    values = tl.load(value + token * value_stride + source, mask=present, other=0.0).to(tl.float32)
    if key_scale is not None:
        k_scale = head_scale(tl.max(tl.abs(keys), axis=1), tl.sum(unusual(keys), axis=1), LARGEST)
        v_scale = head_scale(tl.max(tl.abs(values), axis=1), tl.sum(unusual(values), axis=1), LARGEST)
        tl.store(key_scale + row, k_scale, mask=heads)
        tl.store(value_scale + row, v_scale, mask=heads)
        keys = tl.where((k_scale == k_scale)[:, None], keys / k_scale[:, None], 0.0)
        values = tl.where((v_scale == v_scale)[:, None], values / v_scale[:, None], 0.0)
    if k_factor is not None:
        keys = tl.div_rn(keys, k_factor + tl.zeros_like(keys))
        values = tl.div_rn(values, v_factor + tl.zeros_like(values))
    tl.store(key_cache + target, to_entry(keys, FORMAT, LARGEST, key_cache), mask=present)
    tl.store(value_cache + target, to_entry(values, FORMAT, LARGEST, value_cache), mask=present)


@triton.jit(do_not_specialize=["num_blocks"])
def copy_blocks_kernel(
    key,
    value,
    key_scale,
    value_scale,
    sources,
    targets,
    num_blocks,
    SIZE: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK of the SIZE entries of one block of keys and of values, and the scales of their rows of ROW entries."""
    wait_for_earlier(PDL)
    pair = tl.program_id(0)
    source = tl.load(sources + pair)
    target = tl.load(targets + pair)
    inside = (source >= 0) & (source < num_blocks) & (target >= 0) & (target < num_blocks)
    entry = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = entry < tl.where(inside, SIZE, 0)
    tl.store(key + target * SIZE + entry, tl.load(key + source * SIZE + entry, mask=present, other=0), mask=present)
    tl.store(value + target * SIZE + entry, tl.load(value + source * SIZE + entry, mask=present, other=0), mask=present)
    if key_scale is not None:
        ROWS: tl.constexpr = SIZE // ROW
        scaled = entry < tl.where(inside, ROWS, 0)
        k_scale = tl.load(key_scale + source * ROWS + entry, mask=scaled, other=0.0)
        v_scale = tl.load(value_scale + source * ROWS + entry, mask=scaled, other=0.0)
        tl.store(key_scale + target * ROWS + entry, k_scale, mask=scaled)
        tl.store(value_scale + target * ROWS + entry, v_scale, mask=scaled)


@triton.jit(do_not_specialize=["num_slots"])
def gather_kernel(
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    slots,
    key,
    value,
    num_slots,
    k_factor,
    v_factor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Keys and values of ROWS heads of the token in one slot; zeros where there is no such slot."""
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    slot = tl.load(slots + token)
    heads = head < tl.where((slot >= 0) & (slot < num_slots), HEADS, 0)
    in_head = (column < HEAD_DIM)[None, :]
    row = ((slot // BLOCK_SIZE) * HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    source = row[:, None] * HEAD_DIM + column[None, :]
    keys = tl.load(key_cache + source, mask=heads[:, None] & in_head, other=0.0).to(tl.float32)
    values = tl.load(value_cache + source, mask=heads[:, None] & in_head, other=0.0).to(tl.float32)
    if key_scale is not None:
        keys *= tl.load(key_scale + row, mask=heads, other=0.0)[:, None]
        values *= tl.load(value_scale + row, mask=heads, other=0.0)[:, None]
    if k_factor is not None:
        keys *= k_factor
        values *= v_factor
    target = (token * HEADS + head)[:, None] * HEAD_DIM + column[None, :]
    present = (head < HEADS)[:, None] & in_head
    tl.store(key + target, keys.to(key.dtype.element_ty), mask=present)
    tl.store(value + target, values.to(value.dtype.element_ty), mask=present)


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    if key.dtype not in FLOATS or value.dtype != key.dtype:
        eager.write_kv(key, value, cache, slot_mapping)
        return
    key, value = (x if x.stride()[1:] == (cache.head_dim, 1) else x.contiguous() for x in (key, value))
    rows, block_d = tile(cache.num_kv_heads, cache.head_dim)
    write.launch(
        (len(key), triton.cdiv(cache.num_kv_heads, rows)),
        key,
        value,
        cache.key,
        cache.value,
        cache.key_scale,
        cache.value_scale,
        slot_mapping.contiguous(),
        key.stride(0),
        value.stride(0),
        cache.num_blocks * cache.block_size,
        *factors_of(cache),
        **layout(cache.num_kv_heads, cache.head_dim, cache.block_size, cache.format),
        ROWS=rows,
        BLOCK_D=block_d,
    )


def copy_blocks(cache: KVCache, sources: torch.Tensor, targets: torch.Tensor) -> None:
    key, value = as_words(cache.key), as_words(cache.value)
    size = key[0].numel()
    copy.launch(
        (len(sources), triton.cdiv(size, COPIED)),
        key,
        value,
        cache.key_scale,
        cache.value_scale,
        sources.contiguous(),
        targets.contiguous(),
        cache.num_blocks,
        SIZE=size,
        ROW=key.shape[3],
        BLOCK=COPIED,
    )


def as_words(entries: torch.Tensor) -> torch.Tensor:
    """Entries of a cache as integers of 32 bits where a head is whole ones, else of 8 bits: copies need no numbers."""
    bytes_of_head = entries.shape[-1] * entries.itemsize
    return entries.view(torch.uint8 if bytes_of_head % 4 else torch.int32)


def gather_kv(cache: KVCache, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if dtype not in FLOATS:
        return eager.gather_kv(cache, slots, dtype)
    shape = (len(slots), cache.num_kv_heads, cache.head_dim)
    key, value = (torch.empty(shape, dtype=dtype, device=cache.key.device) for _ in range(2))
    rows, block_d = tile(cache.num_kv_heads, cache.head_dim)
    gather.launch(
        (len(slots), triton.cdiv(cache.num_kv_heads, rows)),
        cache.key,
        cache.value,
        cache.key_scale,
        cache.value_scale,
        slots.contiguous(),
        key,
        value,
        cache.num_blocks * cache.block_size,
        *factors_of(cache),
        HEADS=cache.num_kv_heads,
        HEAD_DIM=cache.head_dim,
        BLOCK_SIZE=cache.block_size,
        ROWS=rows,
        BLOCK_D=block_d,
    )
    return key, value


def factors_of(cache: KVCache) -> tuple[float, float] | tuple[None, None]:
    """``k_scale`` and ``v_scale``, in the format that may have them."""
    return (float(cache.k_scale), float(cache.v_scale)) if cache.format == "fp8_e4m3" else (None, None)


def factor_type(format: CacheFormat) -> str | None:
    """Of each of ``factors_of``."""
    return "fp32" if format == "fp8_e4m3" else None


def layout(num_kv_heads: int, head_dim: int, block_size: int, format: CacheFormat) -> dict[str, Any]:
    """What a kernel that writes a cache must know of it."""
    return {
        "HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "FORMAT": "int8" if STORAGE[format] == torch.int8 else "float",
        "LARGEST": SCALED.get(format, LARGEST.get(format, 0.0)),
    }


def tile(num_heads: int, head_dim: int) -> tuple[int, int]:
    """Heads and columns (powers of two) of a program: about two thousand entries."""
    block_d = power_of_two(head_dim, 16)
    return min(power_of_two(num_heads), max(1, 2048 // block_d)), block_d


def formats_of(family: str) -> list[CacheFormat]:
    """Formats that a GPU family has instructions for: e4m3 came with sm_89."""
    return [format for format in STORAGE if family != "sm_80" or STORAGE[format] != torch.float8_e4m3fn]


_SHAPES = ((8, 128), (8, 64), (2, 64), (4, 256), (32, 96), (16, 80))
"""Heads and their width."""


def _configurations(family: str) -> list[Configuration]:
    found = []
    for format in formats_of(family):
        for dtype in (torch.bfloat16, torch.float16):
            for heads, head_dim in _SHAPES:
                scale = "*fp32" if format in SCALED else None
                rows, block_d = tile(heads, head_dim)
                entries = pointer(STORAGE[format])
                types: dict[str, str | None] = {
                    "key": pointer(dtype),
                    "value": pointer(dtype),
                    "key_cache": entries,
                    "value_cache": entries,
                }
                types |= {"key_scale": scale, "value_scale": scale, "slots": "*i64"}
                types |= dict.fromkeys(("key_stride", "value_stride", "num_slots"), "i32")
                types |= dict.fromkeys(("k_factor", "v_factor"), factor_type(format))
                constants = {**layout(heads, head_dim, 16, format), "ROWS": rows, "BLOCK_D": block_d}
                found.append(Configuration(types, constants))
    return found


def _copy_configurations(family: str) -> list[Configuration]:
    found = []
    for format in STORAGE:
        scale = "*fp32" if format in SCALED else None
        for heads, head_dim in _SHAPES:
            row = head_dim * STORAGE[format].itemsize // 4
            types: dict[str, str | None] = {"key": "*i32", "value": "*i32", "key_scale": scale, "value_scale": scale}
            types |= {"sources": "*i64", "targets": "*i64", "num_blocks": "i32"}
            found.append(Configuration(types, {"SIZE": heads * 16 * row, "ROW": row, "BLOCK": COPIED}))
    return found


def _gather_configurations(family: str) -> list[Configuration]:
    found = []
    for format in formats_of(family):
        for dtype in (torch.bfloat16, torch.float16):
            for heads, head_dim in _SHAPES:
                scale = "*fp32" if format in SCALED else None
                rows, block_d = tile(heads, head_dim)
                entries = pointer(STORAGE[format])
                types: dict[str, str | None] = {"key_cache": entries, "value_cache": entries}
                types |= {"key_scale": scale, "value_scale": scale, "slots": "*i64"}
                types |= {"key": pointer(dtype), "value": pointer(dtype), "num_slots": "i32"}
                types |= dict.fromkeys(("k_factor", "v_factor"), factor_type(format))
                constants = {"HEADS": heads, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "ROWS": rows, "BLOCK_D": block_d}
                found.append(Configuration(types, constants))
    return found


write = Kernel(write_kernel, _configurations)
copy = Kernel(copy_blocks_kernel, _copy_configurations)
gather = Kernel(gather_kernel, _gather_configurations)
