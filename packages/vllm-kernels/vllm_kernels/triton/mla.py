"""Attention over latents, see ``ops.mla``: one kernel for prompts and single tokens.

All heads share the one key of a token, so a tile has heads (and tokens) of a sequence as its rows, and loads each
latent once, as key and as value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from vllm_kernels import batch_invariance
from vllm_kernels.cache_format import SCALED, CacheFormat
from vllm_kernels.eager import mla as eager
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import STORAGE
from vllm_kernels.ops.mla import LatentCache
from vllm_kernels.transfers import upload_arrays
from vllm_kernels.triton.attention import LEAST_SCALE
from vllm_kernels.triton.attention_merge import merge
from vllm_kernels.triton.attention_plan import longest_first, parts_of, splits_of, tables_of
from vllm_kernels.triton.attention_turn import LOG2E, entries_of
from vllm_kernels.triton.cache import LARGEST, formats_of, from_entry, to_entry
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.tuning import Choice, Tunable, Where, Work

FEW_TOKENS = 4
"""Sequences with at most so many new tokens have the latents cut into splits."""
MOST_ROWS = 32
"""Of a tile: with more, the sums of 512 columns do not fit the registers."""


@triton.jit
def attend_to_latents(
    largest,
    total,
    sum_of_latents,
    q_latent,
    q_rope,
    at,
    table,
    num_blocks,
    entries,
    position,
    end,
    scale,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SEEN_BY_ALL: tl.constexpr,
):
    """One turn of an online softmax: the state of the rows with the BLOCK_N latents from ``at`` on.

    Returns ``largest`` (of the scores times LOG2E, ``[BLOCK_M]``), ``total`` of the weights ``[BLOCK_M]`` and
    ``sum_of_latents`` ``[BLOCK_M, BLOCK_C]``. ``scale`` is positive. ``table`` is the sequence's row of the block
    table; what lies outside the cache reads as zeros. Without SEEN_BY_ALL a row sees latents up to its ``position``,
    and none from ``end`` on is read.
    """
    key_position = at + tl.arange(0, BLOCK_N)
    latent_column = tl.arange(0, BLOCK_C)
    rope_column = tl.arange(0, BLOCK_R)
    entry, in_block = entries_of(table, at, BLOCK_N, BLOCK_SIZE)
    block = tl.load(entry) if SEEN_BY_ALL else tl.load(entry, mask=key_position < end, other=-1)
    present = block.to(tl.uint32, bitcast=True) < num_blocks
    place = block.to(tl.int64) * (BLOCK_SIZE * (RANK + ROPE)) + in_block * (RANK + ROPE)
    latents = tl.load(
        entries + place[:, None] + latent_column[None, :],
        mask=present[:, None] & (latent_column < RANK)[None, :],
        other=0.0,
    )
    latents = from_entry(latents, q_latent.dtype)
    keys = tl.load(
        entries + place[None, :] + RANK + rope_column[:, None],
        mask=present[None, :] & (rope_column < ROPE)[:, None],
        other=0.0,
    )
    score = tl.dot(q_latent, tl.trans(latents), input_precision="ieee")
    score = tl.dot(q_rope, from_entry(keys, q_rope.dtype), score, input_precision="ieee")
    if not SEEN_BY_ALL:
        seen = key_position[None, :] <= tl.minimum(position, end - 1)[:, None]
        score = tl.where(seen, score, float("-inf"))
    # Scores are times LOG2E, for exp2.
    new_largest = tl.maximum(largest, tl.max(score, axis=1) * (scale * LOG2E))
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weight = tl.exp2(score * (scale * LOG2E) - base[:, None])
    kept = tl.exp2(largest - base)
    total = total * kept + tl.sum(weight, axis=1)
    sum_of_latents = sum_of_latents * kept[:, None]
    sum_of_latents = tl.dot(weight.to(q_latent.dtype), latents, sum_of_latents, input_precision="ieee")
    return new_largest, total, sum_of_latents


@triton.jit(do_not_specialize=["table_stride", "num_blocks", "part_tokens"])
def latent_attention_kernel(
    query_latent,
    query_rope,
    entries,
    block_table,
    query_start_loc,
    seq_lens,
    tile_seq,
    tile_first,
    out,
    part_out,
    part_max,
    part_sum,
    part_starts,
    latent_token_stride,
    latent_head_stride,
    rope_token_stride,
    rope_head_stride,
    table_stride,
    num_blocks,
    part_tokens,
    scale,
    NUM_HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of query rows, one part of the latents, by online softmax (arXiv:2307.08691).

    Row ``r`` of a sequence is head ``r % NUM_HEADS`` of its new token ``r // NUM_HEADS``; a tile begins at row
    ``tile_first``. With one split the result goes to ``out``; with more, its sum and the softmax's state go to
    ``part_*`` (``[splits, part_tokens, NUM_HEADS]``), a sequence's from ``part_starts`` on, for ``merge_kernel``.
    """
    wait_for_earlier(PDL)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    seq = tl.load(tile_seq + tile).to(tl.int64)
    first = tl.load(tile_first + tile)
    start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - start
    seq_len = tl.load(seq_lens + seq)
    context = seq_len - query_len

    row = first + tl.arange(0, BLOCK_M)
    local = row // NUM_HEADS
    head = (row % NUM_HEADS).to(tl.int64)  # heads may lie as far apart as all tokens of the step are large
    valid = local < query_len
    position = context + local
    token = (start + local).to(tl.int64)
    latent_column = tl.arange(0, BLOCK_C)
    rope_column = tl.arange(0, BLOCK_R)
    in_latent = latent_column < RANK
    in_rope = rope_column < ROPE
    q_latent = tl.load(
        query_latent + (token * latent_token_stride + head * latent_head_stride)[:, None] + latent_column[None, :],
        mask=valid[:, None] & in_latent[None, :],
        other=0.0,
    )
    q_rope = tl.load(
        query_rope + (token * rope_token_stride + head * rope_head_stride)[:, None] + rope_column[None, :],
        mask=valid[:, None] & in_rope[None, :],
        other=0.0,
    )

    # Latents that any row sees, and this split's part of them.
    begin = 0
    end = tl.minimum(context + (first + BLOCK_M - 1) // NUM_HEADS + 1, seq_len)
    if part_out is not None:
        span = tl.cdiv(tl.cdiv(end, BLOCK_N), tl.num_programs(1)) * BLOCK_N
        begin = split * span
        end = tl.minimum(end, begin + span)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_of_latents = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    # Turns whose latents all rows see come first, and compare nothing.
    after = tl.maximum(tl.minimum(context + first // NUM_HEADS + 1, end) // BLOCK_N * BLOCK_N, begin)
    table = block_table + seq * table_stride
    for later in tl.static_range(2):
        for at in range(after if later else begin, end if later else after, BLOCK_N):
            largest, total, sum_of_latents = attend_to_latents(
                largest,
                total,
                sum_of_latents,
                q_latent,
                q_rope,
                at,
                table,
                num_blocks,
                entries,
                position,
                end,
                scale,
                RANK,
                ROPE,
                BLOCK_SIZE,
                BLOCK_N,
                BLOCK_C,
                BLOCK_R,
                later == 0,
            )

    present = valid[:, None] & in_latent[None, :]
    if part_out is None:
        result = sum_of_latents / tl.where(total == 0.0, 1.0, total)[:, None]
        place_out = out + (token * NUM_HEADS + head)[:, None] * RANK + latent_column[None, :]
        tl.store(place_out, result.to(out.dtype.element_ty), mask=present)
    else:
        token = tl.load(part_starts + seq).to(tl.int64) + local
        state = (split.to(tl.int64) * part_tokens + token) * NUM_HEADS + head
        tl.store(part_max + state, largest, mask=valid)
        tl.store(part_sum + state, total, mask=valid)
        tl.store(part_out + state[:, None] * RANK + latent_column[None, :], sum_of_latents, mask=present)


@triton.jit(do_not_specialize=["num_slots"])
def write_latent_kernel(
    latent,
    key_rope,
    entries,
    slots,
    latent_stride,
    rope_stride,
    num_slots,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    LARGEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Latent and rotated key part of one token go to the token's slot."""
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    inside = (slot >= 0) & (slot < num_slots)
    column = tl.arange(0, BLOCK_C)
    rope_column = tl.arange(0, BLOCK_R)
    in_latent = column < tl.where(inside, RANK, 0)
    in_rope = rope_column < tl.where(inside, ROPE, 0)
    values = tl.load(latent + token * latent_stride + column, mask=in_latent, other=0.0).to(tl.float32)
    keys = tl.load(key_rope + token * rope_stride + rope_column, mask=in_rope, other=0.0).to(tl.float32)
    target = entries + slot * (RANK + ROPE)
    tl.store(target + column, to_entry(values, "float", LARGEST, entries), mask=in_latent)
    tl.store(target + RANK + rope_column, to_entry(keys, "float", LARGEST, entries), mask=in_rope)


@dataclass(slots=True)
class _Tiles:
    """Tiles of one launch: ``seq`` and first row ``first`` of each, int32 ``[num_tiles]`` on the device.

    ``tokens_seq`` and ``tokens_first`` say which tokens a launch with splits merges, FEW_TOKENS a program;
    ``part_tokens`` how many these are, and ``part_starts`` is as of ``parts_of``.
    """

    seq: torch.Tensor
    first: torch.Tensor
    rows: int
    splits: int
    tokens_seq: torch.Tensor
    tokens_first: torch.Tensor
    part_tokens: int
    part_starts: torch.Tensor | None


@dataclass(slots=True)
class _Plan:
    """All work of a step."""

    launches: list[_Tiles]

    def refill(self, metadata: AttentionMetadata) -> None:
        """Nothing changes: query lengths stay, and splits are parts of whatever length a sequence has."""


def latent_attention(
    query_latent: torch.Tensor,
    query_rope: torch.Tensor,
    cache: LatentCache,
    metadata: AttentionMetadata,
    scale: float,
) -> torch.Tensor:
    if query_latent.dtype not in FLOATS:
        return eager.latent_attention(query_latent, query_rope, cache, metadata, scale)
    query_latent, query_rope = (x if x.stride(2) == 1 else x.contiguous() for x in (query_latent, query_rope))
    if scale < 0:
        query_latent, query_rope = -query_latent, -query_rope
    scale = max(abs(scale), LEAST_SCALE)
    query_starts, seq_lens, block_table = tables_of(metadata)
    _, num_heads, rank = query_latent.shape
    out = torch.empty(query_latent.shape, dtype=query_latent.dtype, device=query_latent.device)
    for tiles in _plan_for(metadata, num_heads).launches:
        parts: tuple[torch.Tensor | None, ...] = (None, None, None, None)
        if tiles.splits > 1:
            state = (tiles.splits, tiles.part_tokens, num_heads)
            sums = out.new_empty(*state, rank, dtype=torch.float32)
            starts = query_starts if tiles.part_starts is None else tiles.part_starts
            parts = (sums, sums.new_empty(state), sums.new_empty(state), starts)
        attend_latent.launch(
            (len(tiles.seq), tiles.splits),
            query_latent,
            query_rope,
            cache.entries,
            block_table,
            query_starts,
            seq_lens,
            tiles.seq,
            tiles.first,
            out,
            *parts,
            *query_latent.stride()[:2],
            *query_rope.stride()[:2],
            block_table.stride(0),
            cache.num_blocks,
            tiles.part_tokens,
            float(scale),
            NUM_HEADS=num_heads,
            **_sizes(rank, cache.rope_dim),
            BLOCK_SIZE=cache.block_size,
            **choose(query_latent.device, tiles.rows, rank, query_latent.dtype, cache.entries.dtype),
        )
        if tiles.splits > 1:
            merge.launch(
                (len(tiles.tokens_seq), FEW_TOKENS * num_heads),
                *parts,
                query_starts,
                tiles.tokens_seq,
                tiles.tokens_first,
                None,
                out,
                tiles.part_tokens,
                tiles.splits,
                **merge_constants(num_heads, rank, tiles.splits),
            )
    return out


def write_latent(latent: torch.Tensor, key_rope: torch.Tensor, cache: LatentCache, slot_mapping: torch.Tensor) -> None:
    if latent.dtype not in FLOATS:
        eager.write_latent(latent, key_rope, cache, slot_mapping)
        return
    latent, key_rope = (x if x.stride(1) == 1 else x.contiguous() for x in (latent, key_rope))
    write.launch(
        (len(latent),),
        latent,
        key_rope,
        cache.entries,
        slot_mapping.contiguous(),
        latent.stride(0),
        key_rope.stride(0),
        cache.num_blocks * cache.block_size,
        **_sizes(cache.lora_rank, cache.rope_dim),
        LARGEST=LARGEST.get(cache.format, 0.0),
    )


def rows_of_tile(few: bool, num_heads: int) -> int:
    """Query rows of a tile. Few tokens have tiles of no more rows than a token has heads."""
    return min(power_of_two(num_heads, 16), MOST_ROWS) if few else MOST_ROWS


def choose(where: Where, rows: int, rank: int, query: torch.dtype, entries: torch.dtype) -> dict[str, int]:
    """Sizes, warps and stages of a launch."""
    columns = power_of_two(rank, 16)
    bits = {"query_bits": 8 * query.itemsize, "entry_bits": 8 * entries.itemsize}
    return {"BLOCK_M": rows, **TILES.choose(where, rows=rows, columns=columns, **bits)}


def _rule(rows: int, columns: int, query_bits: int, entry_bits: int) -> Choice:
    """Latents of one turn of the loop: 36 KiB of 16 bit ones of DeepSeek's size."""
    return {"BLOCK_N": 16 if query_bits == 32 else 32, "num_warps": 4 if rows <= 16 else 8, "num_stages": 2}


def _candidates(rows: int, columns: int, query_bits: int, entry_bits: int) -> dict[str, tuple[int, ...]]:
    return {"BLOCK_N": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)}


def _work(
    rows: int, columns: int, query_bits: int, entry_bits: int, BLOCK_N: int, num_warps: int, num_stages: int
) -> Work:
    # A rotated part beside a latent: 64 columns of DeepSeek's.
    loaded = BLOCK_N * (columns + 64) * entry_bits // 8
    return Work("memory", rows * BLOCK_N, loaded, rows * (columns + 64) * query_bits // 8)


def _classes(family: str) -> list[dict[str, int | str]]:
    return [
        {"rows": rows, "columns": 512, "query_bits": 16, "entry_bits": bits} for rows in (16, 32) for bits in (8, 16)
    ]


TILES = Tunable(
    "latent_attention_kernel", ("rows", "columns", "query_bits", "entry_bits"), _rule, _candidates, _classes, _work
)


def merge_constants(num_heads: int, rank: int, splits: int) -> dict[str, int]:
    """Of ``merge_kernel``."""
    return {
        "NUM_HEADS": num_heads,
        "HEAD_DIM": rank,
        "BLOCK_D": power_of_two(rank, 16),
        "TOKENS": FEW_TOKENS,
        "SPLITS": splits,
    }


def _sizes(rank: int, rope_dim: int) -> dict[str, int]:
    return {
        "RANK": rank,
        "ROPE": rope_dim,
        "BLOCK_C": power_of_two(rank, 16),
        "BLOCK_R": power_of_two(rope_dim, 16),
    }


def _plan_for(metadata: AttentionMetadata, num_heads: int) -> _Plan:
    """Plan of a step, made at the first layer that asks. Raises ``ValueError`` for more new tokens than tokens."""
    key = ("triton mla", num_heads)
    plan: _Plan | None = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = _make_plan(metadata, num_heads)
    return plan


def _make_plan(metadata: AttentionMetadata, num_heads: int) -> _Plan:
    places: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    few_sequences: list[tuple[int, int]] = []
    longest = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        few = query_len <= FEW_TOKENS
        context, rows = seq_len - query_len, rows_of_tile(few, num_heads)
        places[few] += [(context + row // num_heads, seq, row) for row in range(0, query_len * num_heads, rows)]
        if few and query_len:
            few_sequences.append((seq, 0))
            longest = max(longest, seq_len)
    device = metadata.seq_lens.device
    launches = []
    for few, of_tiles in places.items():
        if of_tiles:
            splits = 1
            if few and not batch_invariance.enabled():
                splits = splits_of(len(of_tiles), longest, multiprocessors(device))
            merged = few_sequences if splits > 1 else []
            rows = rows_of_tile(few, num_heads)
            parts = parts_of(metadata, [seq for seq, _ in merged], device) if merged else (0, None)
            tiles = _columns(longest_first(of_tiles), device)
            launches.append(_Tiles(*tiles, rows, splits, *_columns(merged, device), *parts))
    return _Plan(launches)


def _columns(pairs: list[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = upload_arrays(list(np.array(pairs, dtype=np.int32).reshape(-1, 2).T.copy()), device)
    return first, second


def _formats(family: str) -> list[CacheFormat]:
    return [format for format in formats_of(family) if format not in SCALED and format != "float32"]


def _attention_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        for format in _formats(family):
            if STORAGE[format].itemsize == 2 and STORAGE[format] != dtype:
                continue
            for num_heads in (16, 128):
                for few, in_parts in ((False, False), (True, False), (True, True)):
                    rows = rows_of_tile(few, num_heads)
                    kind, part = pointer(dtype), "*fp32" if in_parts else None
                    types: dict[str, str | None] = {"query_latent": kind, "query_rope": kind}
                    types |= {"entries": pointer(STORAGE[format])}
                    types |= dict.fromkeys(
                        ("block_table", "query_start_loc", "seq_lens", "tile_seq", "tile_first"), "*i32"
                    )
                    types |= {"out": kind, "part_out": part, "part_max": part, "part_sum": part}
                    types |= {"part_starts": "*i32" if in_parts else None}
                    types |= dict.fromkeys((f"{name}_stride" for name in _STRIDES), "i32")
                    types |= {"num_blocks": "i32", "part_tokens": "i32", "scale": "fp32"}
                    constants: dict[str, Any] = {"NUM_HEADS": num_heads, **_sizes(512, 64), "BLOCK_SIZE": 16}
                    sizes = choose(family, rows, 512, dtype, STORAGE[format])
                    num_warps, num_stages = sizes.pop("num_warps"), sizes.pop("num_stages")
                    constants |= sizes
                    found.append(Configuration(types, constants, num_warps, num_stages))
    return found


_STRIDES = ("latent_token", "latent_head", "rope_token", "rope_head", "table")


def _write_configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        for format in _formats(family):
            types: dict[str, str | None] = {"latent": pointer(dtype), "key_rope": pointer(dtype)}
            types |= {"entries": pointer(STORAGE[format]), "slots": "*i64"}
            types |= dict.fromkeys(("latent_stride", "rope_stride", "num_slots"), "i32")
            found.append(Configuration(types, {**_sizes(512, 64), "LARGEST": LARGEST.get(format, 0.0)}))
    return found


attend_latent = Kernel(latent_attention_kernel, _attention_configurations)
write = Kernel(write_latent_kernel, _write_configurations)
