from typing import Literal

import torch
import triton
import triton.language as tl

from vllm_kernels.cache_format import SCALED, CacheFormat
from vllm_kernels.eager import attention as eager
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import STORAGE, KVCache
from vllm_kernels.triton.attention_merge import merge
from vllm_kernels.triton.attention_plan import (
    DECODE_ROWS,
    MOST_PROMPT_SPLITS,
    Tiles,
    plan_for,
    rows_of_tile,
    tables_of,
)
from vllm_kernels.triton.attention_turn import LOG2E, attend_to_keys
from vllm_kernels.triton.cache import factor_type, factors_of, formats_of
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.tuning import Choice, Tunable, Where, Work

LAST_KEY = 2**31 - 1
"""No bound of the keys."""
LEAST_SCALE = 1e-30
"""Of scores: the largest one of a row is found before it is multiplied, and that of a key that is not seen is infinite.
"""


@triton.jit(
    do_not_specialize=["table_stride", "num_blocks", "part_tokens", "first_key", "last_key", "first_part", "window"]
)
def attention_kernel(
    query,
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    block_table,
    query_start_loc,
    seq_lens,
    tile_seq,
    tile_first,
    alibi_slopes,
    sinks,
    out,
    part_out,
    part_max,
    part_sum,
    part_starts,
    query_stride,
    table_stride,
    num_blocks,
    part_tokens,
    first_key,
    last_key,
    first_part,
    window,
    scale,
    soft_cap,
    v_factor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of query rows, one KV head, one part of the keys, by online softmax (arXiv:2307.08691).

    The GROUP query heads of a KV head are rows of the same tile, so that each key is read once for all of them. The
    result goes to ``out``; or, where there are several parts, its sum and the softmax's state go to ``part_*``
    (``[parts, part_tokens, HEADS * GROUP]``) from ``first_part`` on, as in flash decoding: a sequence's tokens from
    ``part_starts`` on. Only keys from ``first_key``
    to before ``last_key`` are seen. Sums of values are times ``v_factor`` where it is given.
    """
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq = tl.load(tile_seq + tile).to(tl.int64)
    first = tl.load(tile_first + tile)
    start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - start
    seq_len = tl.load(seq_lens + seq)
    context = seq_len - query_len
    TOKENS: tl.constexpr = BLOCK_M // GROUP

    row = tl.arange(0, BLOCK_M)
    local = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    valid = (row < TOKENS * GROUP) & (local < query_len)
    position = context + local
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_DIM
    token = (start + local).to(tl.int64)
    q = tl.load(
        query + token[:, None] * query_stride + head[:, None] * HEAD_DIM + column[None, :],
        mask=valid[:, None] & in_head[None, :],
        other=0.0,
    )

    # Keys that any row sees, from a multiple of BLOCK_N on, and this split's part of them.
    end = tl.minimum(tl.minimum(context + first + TOKENS, seq_len), last_key)
    low = first_key
    if WINDOWED:
        low = tl.maximum(context + first - window + 1, first_key)
    begin = (low // BLOCK_N) * BLOCK_N
    if part_out is not None:
        span = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), tl.num_programs(2)) * BLOCK_N
        begin += split * span
        end = tl.minimum(end, begin + span)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # Products of few rows take values from shared memory two bytes at a time. Values of one byte come in pairs, and
    # those of even columns and of odd ones are summed up apart.
    PAIRS: tl.constexpr = (
        BLOCK_M < 64
        and BLOCK_D >= 32
        and HEAD_DIM % 2 == 0
        and value_cache.dtype.element_ty.primitive_bitwidth == 8
        and query.dtype.element_ty.primitive_bitwidth == 16
    )
    if PAIRS:
        sum_of_values = tl.zeros([BLOCK_M, BLOCK_D // 2], tl.float32)
        sum_of_odds = tl.zeros([BLOCK_M, BLOCK_D // 2], tl.float32)
    else:
        sum_of_values = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        sum_of_odds = tl.zeros([1], tl.float32)
    slope = None
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
    # The keys that a row sees.
    last_seen = tl.minimum(position, end - 1)
    first_seen = tl.full([BLOCK_M], 0, tl.int32) + low
    if WINDOWED:
        first_seen = tl.maximum(position - window + 1, low)

    # Turns whose keys all rows see come first, and compare nothing. Then those before them, and those after them.
    seen_by_all = low
    if WINDOWED:
        seen_by_all = tl.maximum(context + first + TOKENS - window, low)
    whole = tl.minimum(tl.cdiv(tl.maximum(seen_by_all, begin), BLOCK_N), tl.cdiv(end, BLOCK_N)) * BLOCK_N
    after = tl.maximum(tl.minimum(context + first + 1, end) // BLOCK_N * BLOCK_N, whole)
    table = block_table + seq * table_stride
    skipped = after - whole
    for later in tl.static_range(2):
        for turn in range(begin if later else whole, end - skipped if later else after, BLOCK_N):
            at = turn
            if later:
                at = tl.where(turn < whole, turn, turn + skipped)
            largest, total, sum_of_values, sum_of_odds = attend_to_keys(
                largest,
                total,
                sum_of_values,
                sum_of_odds,
                q,
                at,
                table,
                num_blocks,
                kv_head,
                key_cache,
                value_cache,
                key_scale,
                value_scale,
                slope,
                position,
                first_seen,
                last_seen,
                low,
                end,
                scale,
                soft_cap,
                HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                BLOCK_N,
                BLOCK_D,
                CAPPED,
                PAIRS,
                later == 0,
            )

    if PAIRS:
        sum_of_values = tl.reshape(tl.join(sum_of_values, sum_of_odds), [BLOCK_M, BLOCK_D])
    if v_factor is not None:
        sum_of_values *= v_factor
    if part_out is None:
        if sinks is not None:
            sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
            new_largest = tl.maximum(largest, sink)
            kept = tl.exp2(largest - new_largest)
            total = total * kept + tl.exp2(sink - new_largest)
            sum_of_values = sum_of_values * kept[:, None]
        result = sum_of_values / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            out + (token[:, None] * (HEADS * GROUP) + head[:, None]) * HEAD_DIM + column[None, :],
            result.to(out.dtype.element_ty),
            mask=valid[:, None] & in_head[None, :],
        )
    else:
        token = tl.load(part_starts + seq).to(tl.int64) + local
        state = ((first_part + split).to(tl.int64) * part_tokens + token) * (HEADS * GROUP) + head
        tl.store(part_max + state, largest, mask=valid)
        tl.store(part_sum + state, total, mask=valid)
        tl.store(
            part_out + state[:, None] * HEAD_DIM + column[None, :],
            sum_of_values,
            mask=valid[:, None] & in_head[None, :],
        )


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
    if query.dtype not in FLOATS:
        return eager.paged_attention(query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out)
    _, num_heads, head_dim = query.shape
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    if scale < 0:
        query = -query
    scale = max(abs(scale), LEAST_SCALE)
    alibi_slopes, sinks = (x if x is None else x.contiguous() for x in (alibi_slopes, sinks))
    query_starts, seq_lens, block_table = tables_of(metadata)
    group = num_heads // cache.num_kv_heads
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    cascade = sliding_window is None and alibi_slopes is None
    chosen = {few: choose(query.device, few, head_dim, query.dtype, cache.key.dtype) for few in (True, False)}
    prefill_rows = chosen[False]["BLOCK_M"]
    plan = plan_for(metadata, group, prefill_rows, cache.num_kv_heads, cache.block_size, cascade)
    prefix, block_d = plan.prefix, power_of_two(head_dim, 16)
    parts_of_prefix = prefix.tiles.splits if prefix else 0
    most = max((tiles.splits for tiles in plan.launches), default=0)
    parts = _parts(parts_of_prefix + most, plan.part_tokens, out) if prefix or most > 1 else (None, None, None)

    def is_few(tiles: Tiles) -> bool:
        return tiles.rows <= rows_of_tile(group, DECODE_ROWS)

    def launch(
        tiles: Tiles, query_start_loc: torch.Tensor, lengths: torch.Tensor, keys: tuple[int, int], first_part: int
    ) -> None:
        starts = query_start_loc if plan.part_starts is None else plan.part_starts
        attend.launch(
            (len(tiles.seq), cache.num_kv_heads, tiles.splits),
            query,
            cache.key,
            cache.value,
            cache.key_scale,
            cache.value_scale,
            block_table,
            query_start_loc,
            lengths,
            tiles.seq,
            tiles.first,
            alibi_slopes,
            sinks,
            out,
            *((*parts, starts) if prefix or tiles.splits > 1 else (None, None, None, None)),
            query.stride(0),
            block_table.stride(0),
            cache.num_blocks,
            plan.part_tokens,
            *keys,
            first_part,
            sliding_window or 0,
            float(scale * cache.k_scale),
            float(soft_cap or 0.0),
            factors_of(cache)[1],
            HEADS=cache.num_kv_heads,
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=cache.block_size,
            **tile(chosen[is_few(tiles)], group, head_dim),
            WINDOWED=sliding_window is not None,
            CAPPED=soft_cap is not None,
        )

    if prefix:
        launch(prefix.tiles, prefix.query_start_loc, prefix.seq_lens, (0, prefix.length), 0)
    for tiles in plan.launches:
        own_keys = (prefix.length if prefix else 0, LAST_KEY)
        launch(tiles, query_starts, seq_lens, own_keys, parts_of_prefix)
        count = parts_of_prefix + tiles.splits
        if count > 1:
            tokens = tiles.rows // group
            merge.launch(
                (len(tiles.seq), tokens * num_heads),
                *parts,
                query_starts if plan.part_starts is None else plan.part_starts,
                query_starts,
                tiles.seq,
                tiles.first,
                sinks,
                out,
                plan.part_tokens,
                count,
                NUM_HEADS=num_heads,
                HEAD_DIM=head_dim,
                BLOCK_D=block_d,
                TOKENS=tokens,
                SPLITS=power_of_two(count if prefix or is_few(tiles) else MOST_PROMPT_SPLITS),
            )
    return out


def _parts(count: int, num_tokens: int, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, num_heads, head_dim = out.shape
    state = (count, num_tokens, num_heads)
    sums = out.new_empty(*state, head_dim, dtype=torch.float32)
    return sums, sums.new_empty(state), sums.new_empty(state)


def choose(where: Where, few: bool, head_dim: int, query: torch.dtype, entries: torch.dtype) -> Choice:
    """For sequences with few new tokens, or for the others."""
    return TILES.choose(
        where,
        tokens="few" if few else "many",
        columns=power_of_two(head_dim, 16),
        query_bits=8 * query.itemsize,
        entry_bits=8 * entries.itemsize,
    )


def tile(choice: Choice, group: int, head_dim: int) -> dict[str, int]:
    """Sizes, warps and stages of a launch. A token with more heads than a tile has rows gets more of both."""
    rows = rows_of_tile(group, choice["BLOCK_M"])
    warps = min(choice["num_warps"] * rows // choice["BLOCK_M"], 8)
    return {**choice, "BLOCK_M": rows, "BLOCK_D": power_of_two(head_dim, 16), "num_warps": warps}


def _rule(tokens: str, columns: int, query_bits: int, entry_bits: int) -> Choice:
    """A tile of keys and one of values fit shared memory twice over; wide heads take fewer rows, for the registers."""
    narrow = columns <= 64
    if query_bits == 32:  # multiplied without matrix instructions, in many more registers
        rows = DECODE_ROWS if tokens == "few" else 64 if narrow else 32
        return {"BLOCK_M": rows, "BLOCK_N": 32 if narrow else 16, "num_warps": 8, "num_stages": 2}
    return {
        "BLOCK_M": DECODE_ROWS if tokens == "few" else 64 if columns <= 128 else 32,
        "BLOCK_N": 64 if columns <= 128 else 32,
        "num_warps": 4,
        "num_stages": 3 if columns <= 128 else 2,
    }


def _candidates(tokens: str, columns: int, query_bits: int, entry_bits: int) -> dict[str, tuple[int, ...]]:
    rows = (DECODE_ROWS,) if tokens == "few" else (32, 64, 128)
    return {"BLOCK_M": rows, "BLOCK_N": (16, 32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)}


def _work(
    tokens: str,
    columns: int,
    query_bits: int,
    entry_bits: int,
    BLOCK_M: int,
    BLOCK_N: int,
    num_warps: int,
    num_stages: int,
) -> Work:
    keys_and_values = 2 * BLOCK_N * columns * entry_bits // 8
    bound: Literal["memory", "matrix"] = "memory" if tokens == "few" else "matrix"
    # Rows share the keys that are loaded, and more than 64 keys at a time save nothing.
    return Work(bound, BLOCK_M * min(BLOCK_N, 64), keys_and_values, BLOCK_M * columns * query_bits // 8)


def _classes(family: str) -> list[dict[str, int | str]]:
    return [
        {"tokens": tokens, "columns": columns, "query_bits": 16, "entry_bits": bits}
        for tokens in ("few", "many")
        for columns in (64, 128, 256)
        for bits in (8, 16, 32)
    ]


TILES = Tunable(
    "attention_kernel", ("tokens", "columns", "query_bits", "entry_bits"), _rule, _candidates, _classes, _work
)


def _attention_configurations(family: str) -> list[Configuration]:
    features: list[dict[str, bool]] = [{}]
    features += [{name: True} for name in ("windowed", "capped", "alibi", "sinks")]
    features.append({"windowed": True, "capped": True})
    features.append({"windowed": True, "sinks": True})
    found = []
    for format in formats_of(family):
        for dtype in (torch.bfloat16, torch.float16):
            for head_dim in (64, 80, 96, 128, 192, 256):
                for group in (1, 2, 4, 7, 8):
                    # Many in parts are of a step whose sequences have a common prefix.
                    for few, in_parts in ((False, False), (True, False), (True, True), (False, True)):
                        # Features with the common shape only, as they add to a kernel and do not change its tiles.
                        wanted = features if (head_dim, group) == (128, 4) and dtype == torch.bfloat16 else [{}]
                        found += [
                            _attention_configuration(family, format, dtype, head_dim, group, few, in_parts, **chosen)
                            for chosen in wanted
                        ]
    return found


def _attention_configuration(
    family: str,
    format: CacheFormat,
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    few: bool,
    in_parts: bool,
    *,
    windowed: bool = False,
    capped: bool = False,
    alibi: bool = False,
    sinks: bool = False,
) -> Configuration:
    kind, entries = pointer(dtype), pointer(STORAGE[format])
    scales = "*fp32" if format in SCALED else None
    part = "*fp32" if in_parts else None
    types: dict[str, str | None] = {
        "query": kind,
        "key_cache": entries,
        "value_cache": entries,
        "key_scale": scales,
        "value_scale": scales,
        "block_table": "*i32",
        "query_start_loc": "*i32",
        "seq_lens": "*i32",
        "tile_seq": "*i32",
        "tile_first": "*i32",
        "alibi_slopes": "*fp32" if alibi else None,
        "sinks": kind if sinks else None,
        "out": kind,
        "part_out": part,
        "part_max": part,
        "part_sum": part,
        "part_starts": "*i32" if in_parts else None,
        **dict.fromkeys(("query_stride", "table_stride", "num_blocks", "part_tokens"), "i32"),
        **dict.fromkeys(("first_key", "last_key", "first_part", "window"), "i32"),
        "scale": "fp32",
        "soft_cap": "fp32",
        "v_factor": factor_type(format),
    }
    sizes = tile(choose(family, few, head_dim, dtype, STORAGE[format]), group, head_dim)
    num_warps, num_stages = sizes.pop("num_warps"), sizes.pop("num_stages")
    constants = {
        "HEADS": 8,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": 16,
        **sizes,
        "WINDOWED": windowed,
        "CAPPED": capped,
    }
    return Configuration(types, constants, num_warps, num_stages)


attend = Kernel(attention_kernel, _attention_configurations)
