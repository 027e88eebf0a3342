import torch
import triton
import triton.language as tl

from vllm_kernels.cache_format import SCALED
from vllm_kernels.eager import rotary as eager
from vllm_kernels.ops.cache import STORAGE, KVCache
from vllm_kernels.triton.cache import factor_type, factors_of, formats_of, head_scale, layout, to_entry, unusual
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two


@triton.jit(do_not_specialize=["num_positions", "num_slots"])
def rope_kernel(
    qkv,
    positions,
    cos_sin,
    q_norm,
    k_norm,
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    slots,
    num_positions,
    num_slots,
    k_factor,
    v_factor,
    eps,
    NUM_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FORMAT: tl.constexpr,
    LARGEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS heads of one token of ``qkv`` (NUM_HEADS queries, then HEADS keys and HEADS values).

    A head is three parts: the first and the second of each pair that is rotated, and the rest.
    """
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_query = head < NUM_HEADS
    is_key = (head >= NUM_HEADS) & (head < NUM_HEADS + HEADS)
    exists = head < NUM_HEADS + 2 * HEADS
    base = qkv + token * ((NUM_HEADS + 2 * HEADS) * HEAD_DIM)
    pair = tl.arange(0, BLOCK_HALF)
    if INTERLEAVED:
        first_column = 2 * pair
        second_column = 2 * pair + 1
    else:
        first_column = pair
        second_column = pair + HALF
    rest_column = 2 * HALF + tl.arange(0, BLOCK_REST)
    paired = exists[:, None] & (pair < HALF)[None, :]
    resting = exists[:, None] & (rest_column < HEAD_DIM)[None, :]
    first = tl.load(base + head[:, None] * HEAD_DIM + first_column[None, :], mask=paired, other=0.0).to(tl.float32)
    second = tl.load(base + head[:, None] * HEAD_DIM + second_column[None, :], mask=paired, other=0.0).to(tl.float32)
    rest = tl.load(base + head[:, None] * HEAD_DIM + rest_column[None, :], mask=resting, other=0.0).to(tl.float32)

    if q_norm is not None or k_norm is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1) + tl.sum(rest * rest, axis=1)
        inverse = 1.0 / tl.sqrt(squares / HEAD_DIM + eps)
        if q_norm is not None:
            first, second, rest = normalised(
                first, second, rest, inverse, q_norm, is_query, pair < HALF, first_column, second_column, rest_column,
                HEAD_DIM, UNIT_OFFSET,
            )  # fmt: skip
        if k_norm is not None:
            first, second, rest = normalised(
                first, second, rest, inverse, k_norm, is_key, pair < HALF, first_column, second_column, rest_column,
                HEAD_DIM, UNIT_OFFSET,
            )  # fmt: skip

    if cos_sin is not None:
        position = tl.load(positions + token)
        known = pair < tl.where((position >= 0) & (position < num_positions), HALF, 0)
        cos = tl.load(cos_sin + position * (2 * HALF) + pair, mask=known, other=1.0).to(tl.float32)[None, :]
        sin = tl.load(cos_sin + position * (2 * HALF) + HALF + pair, mask=known, other=0.0).to(tl.float32)[None, :]
        turned = (is_query | is_key)[:, None]
        rotated = first * cos - second * sin
        second = tl.where(turned, second * cos + first * sin, second)
        first = tl.where(turned, rotated, first)

    # Queries stay where they are.
    kind = qkv.dtype.element_ty
    queries = is_query[:, None]
    tl.store(base + head[:, None] * HEAD_DIM + first_column[None, :], first.to(kind), mask=paired & queries)
    tl.store(base + head[:, None] * HEAD_DIM + second_column[None, :], second.to(kind), mask=paired & queries)
    tl.store(base + head[:, None] * HEAD_DIM + rest_column[None, :], rest.to(kind), mask=resting & queries)

    slot = tl.load(slots + token)
    heads = tl.where((slot >= 0) & (slot < num_slots), HEADS, 0)  # none of a token without a slot
    is_key = (head >= NUM_HEADS) & (head < NUM_HEADS + heads)
    is_value = (head >= NUM_HEADS + HEADS) & (head < NUM_HEADS + HEADS + heads)
    cached_head = tl.where(is_value, head - NUM_HEADS - HEADS, head - NUM_HEADS)
    row = ((slot // BLOCK_SIZE) * HEADS + cached_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    if key_scale is not None:
        largest = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))
        largest = tl.maximum(largest, tl.max(tl.abs(rest), axis=1))
        odd = tl.sum(unusual(first), axis=1) + tl.sum(unusual(second), axis=1) + tl.sum(unusual(rest), axis=1)
        scale = head_scale(largest, odd, LARGEST)
        tl.store(key_scale + row, scale, mask=is_key)
        tl.store(value_scale + row, scale, mask=is_value)
        usable = (scale == scale)[:, None]
        first = tl.where(usable, first / scale[:, None], 0.0)
        second = tl.where(usable, second / scale[:, None], 0.0)
        rest = tl.where(usable, rest / scale[:, None], 0.0)
    if k_factor is not None:
        factor = tl.where(is_value, v_factor, k_factor).to(tl.float32)[:, None]
        first = tl.div_rn(first, factor + tl.zeros_like(first))
        second = tl.div_rn(second, factor + tl.zeros_like(second))
        rest = tl.div_rn(rest, factor + tl.zeros_like(rest))
    first_entry = to_entry(first, FORMAT, LARGEST, key_cache)
    second_entry = to_entry(second, FORMAT, LARGEST, key_cache)
    rest_entry = to_entry(rest, FORMAT, LARGEST, key_cache)
    target = row[:, None] * HEAD_DIM
    keys = is_key[:, None]
    tl.store(key_cache + target + first_column[None, :], first_entry, mask=paired & keys)
    tl.store(key_cache + target + second_column[None, :], second_entry, mask=paired & keys)
    tl.store(key_cache + target + rest_column[None, :], rest_entry, mask=resting & keys)
    values = is_value[:, None]
    tl.store(value_cache + target + first_column[None, :], first_entry, mask=paired & values)
    tl.store(value_cache + target + second_column[None, :], second_entry, mask=paired & values)
    tl.store(value_cache + target + rest_column[None, :], rest_entry, mask=resting & values)


@triton.jit
def normalised(
    first,
    second,
    rest,
    inverse,
    weight,
    chosen,
    paired,
    first_column,
    second_column,
    rest_column,
    HEAD_DIM: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """The three parts of the heads that are ``chosen``, times ``inverse`` and the weight; the others as they are."""
    offset = 1.0 if UNIT_OFFSET else 0.0
    first_weight = tl.load(weight + first_column, mask=paired, other=0.0).to(tl.float32) + offset
    second_weight = tl.load(weight + second_column, mask=paired, other=0.0).to(tl.float32) + offset
    rest_weight = tl.load(weight + rest_column, mask=rest_column < HEAD_DIM, other=0.0).to(tl.float32) + offset
    factor = inverse[:, None]
    first = tl.where(chosen[:, None], first * factor * first_weight[None, :], first)
    second = tl.where(chosen[:, None], second * factor * second_weight[None, :], second)
    rest = tl.where(chosen[:, None], rest * factor * rest_weight[None, :], rest)
    return first, second, rest


def rope_and_cache(
    qkv: torch.Tensor,
    num_heads: int,
    positions: torch.Tensor | None,
    cos_sin_cache: torch.Tensor | None,
    cache: KVCache,
    slot_mapping: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    norm_eps: float,
    unit_offset: bool,
    interleaved: bool,
) -> torch.Tensor:
    if qkv.dtype not in FLOATS:
        return eager.rope_and_cache(
            qkv, num_heads, positions, cos_sin_cache, cache, slot_mapping, q_norm, k_norm, norm_eps, unit_offset,
            interleaved,
        )  # fmt: skip
    qkv = qkv.contiguous()
    positions, cos_sin_cache, q_norm, k_norm = (
        x if x is None else x.contiguous() for x in (positions, cos_sin_cache, q_norm, k_norm)
    )
    rotary_dim = 0 if cos_sin_cache is None else cos_sin_cache.shape[1]
    heads = num_heads + 2 * cache.num_kv_heads
    shape = tile(heads, cache.head_dim, rotary_dim)
    rope.launch(
        (len(qkv), triton.cdiv(heads, shape["ROWS"])),
        qkv,
        positions,
        cos_sin_cache,
        q_norm,
        k_norm,
        cache.key,
        cache.value,
        cache.key_scale,
        cache.value_scale,
        slot_mapping.contiguous(),
        0 if cos_sin_cache is None else len(cos_sin_cache),
        cache.num_blocks * cache.block_size,
        *factors_of(cache),
        float(norm_eps),
        NUM_HEADS=num_heads,
        **layout(cache.num_kv_heads, cache.head_dim, cache.block_size, cache.format),
        **shape,
        UNIT_OFFSET=unit_offset,
        INTERLEAVED=interleaved,
    )
    query: torch.Tensor = qkv[:, : num_heads * cache.head_dim].unflatten(1, (num_heads, cache.head_dim))
    return query


def tile(heads: int, head_dim: int, rotary_dim: int) -> dict[str, int]:
    """Heads of a program, about two thousand entries, and the parts of a head."""
    half = rotary_dim // 2
    rows = min(power_of_two(heads), max(1, 2048 // power_of_two(head_dim)))
    return {
        "HALF": half,
        "BLOCK_HALF": power_of_two(half),
        "BLOCK_REST": power_of_two(head_dim - rotary_dim),
        "ROWS": rows,
    }


def _configurations(family: str) -> list[Configuration]:
    found = []
    for format in formats_of(family):
        for dtype in (torch.bfloat16, torch.float16):
            for num_heads, kv_heads, head_dim, rotary_dim, normed, offset, interleaved in (
                (16, 8, 128, 128, True, False, False),  # Qwen 3
                (32, 8, 128, 128, False, False, False),  # Llama
                (14, 2, 64, 64, False, False, False),  # Qwen 2
                (8, 4, 256, 256, True, True, False),  # Gemma 3
                (32, 32, 80, 32, False, False, False),  # partial rotation
                (16, 16, 256, 64, False, False, True),  # GPT-J
                (12, 12, 64, 0, False, False, False),  # learned positions
            ):
                kind, entries = pointer(dtype), pointer(STORAGE[format])
                scale = "*fp32" if format in SCALED else None
                types: dict[str, str | None] = {
                    "qkv": kind,
                    "positions": "*i64" if rotary_dim else None,
                    "cos_sin": "*fp32" if rotary_dim else None,
                    "q_norm": kind if normed else None,
                    "k_norm": kind if normed else None,
                    "key_cache": entries,
                    "value_cache": entries,
                    "key_scale": scale,
                    "value_scale": scale,
                    "slots": "*i64",
                    "num_positions": "i32",
                    "num_slots": "i32",
                    "k_factor": factor_type(format),
                    "v_factor": factor_type(format),
                    "eps": "fp32",
                }
                constants = {
                    "NUM_HEADS": num_heads,
                    **layout(kv_heads, head_dim, 16, format),
                    **tile(num_heads + 2 * kv_heads, head_dim, rotary_dim),
                    "UNIT_OFFSET": offset,
                    "INTERLEAVED": interleaved,
                }
                found.append(Configuration(types, constants))
    return found


rope = Kernel(rope_kernel, _configurations)
