from typing import get_args

import pytest
import torch
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as apply_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as apply_half_split

from tests.kernels.paged import format_of, spread
from tests.kernels.test_cache import tokens_of
from vllm_kernels.backend import use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache
from vllm_kernels.ops.norm import rms_norm
from vllm_kernels.ops.rotary import rope_and_cache

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# Half a step of the format, as a share of the largest entry of a head.
STORED = {"int8_per_token_head": 0.5 / 127, "fp8_per_token_head": 2**-4, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}
HEADS, KV_HEADS = 4, 2


def cos_sin(rotary_dim: int, max_position: int = 64) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def new_cache(head_dim: int, format: CacheFormat = "float32") -> KVCache:
    return allocate_kv_cache(6, 4, KV_HEADS, head_dim, format)


def random_qkv(num_tokens: int, head_dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_tokens, (HEADS + 2 * KV_HEADS) * head_dim).to(dtype)


def rope(qkv: torch.Tensor, positions: torch.Tensor, table: torch.Tensor | None, cache: KVCache, **options):
    """Queries, and keys and values read back; token i goes to slot 2 i + 1."""
    slots = 2 * torch.arange(len(qkv)) + 1
    query = rope_and_cache(qkv.clone(), HEADS, positions, table, cache, slots, **options)
    keys, values = tokens_of(cache)
    return query, keys[slots], values[slots]


def exact(qkv: torch.Tensor, positions: torch.Tensor, table: torch.Tensor | None, head_dim: int, **options):
    """The same by definition, in float64."""
    query, key, value = qkv.double().view(len(qkv), -1, head_dim).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    treated = []
    for x, weight in ((query, options.get("q_norm")), (key, options.get("k_norm"))):
        if weight is not None:
            weight = weight.double() + (1 if options.get("unit_offset") else 0)
            x = x / (x.square().mean(-1, keepdim=True) + options["norm_eps"]).sqrt() * weight
        if table is not None:
            half = table.shape[1] // 2
            pairs = x[..., : 2 * half].reshape(*x.shape[:2], half, 2) if options.get("interleaved") else None
            first, second = pairs.unbind(-1) if pairs is not None else (x[..., :half], x[..., half : 2 * half])
            turned = torch.complex(first, second) * torch.complex(*table.double()[positions][:, None].chunk(2, dim=-1))
            parts = torch.view_as_real(turned)
            parts = parts.flatten(-2) if options.get("interleaved") else torch.cat(parts.unbind(-1), dim=-1)
            x = torch.cat([parts, x[..., 2 * half :]], dim=-1)
        treated.append(x)
    return *treated, value


def close(found: torch.Tensor, wanted: torch.Tensor, rounding: float) -> bool:
    return torch.allclose(found.double(), wanted, rtol=rounding, atol=max(rounding, 4e-6) / 4)


OPTIONS = {
    "plain": (16, 16, {}),
    "part of the dimensions": (20, 6, {}),
    "wide": (128, 128, {}),
    "interleaved": (16, 16, {"interleaved": True}),
    "interleaved part": (40, 34, {"interleaved": True}),
    "norms": (24, 24, {"norms": True}),
    "Gemma's norms": (256, 256, {"norms": True, "unit_offset": True}),
    "norms alone": (16, 0, {"norms": True}),
    "nothing but the cache": (24, 0, {}),
}


def case(kind: str, dtype: torch.dtype):
    torch.manual_seed(0)
    head_dim, rotary_dim, options = OPTIONS[kind]
    options = dict(options)
    if options.pop("norms", False):
        options |= {"q_norm": torch.randn(head_dim).to(dtype), "k_norm": torch.randn(head_dim).to(dtype)}
        options["norm_eps"] = 1e-6
    table = cos_sin(rotary_dim) if rotary_dim else None
    return random_qkv(9, head_dim, dtype), torch.randint(0, 64, (9,)), table, head_dim, options


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_heads_are_the_float64_result_rounded_once(kind, dtype, level):
    qkv, positions, table, head_dim, options = case(kind, dtype)
    found = rope(qkv, positions, table, new_cache(head_dim, format_of(dtype)), **options)
    assert found[0].dtype == dtype
    for result, wanted in zip(found, exact(qkv, positions, table, head_dim, **options), strict=True):
        assert close(result, wanted, ROUNDING[dtype])


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_face_computes_the_same(kind, face):
    qkv, positions, table, head_dim, options = case(kind, torch.float32)
    found = rope(qkv, positions, table, new_cache(head_dim), **options)
    for result, wanted in zip(found, exact(qkv, positions, table, head_dim, **options), strict=True):
        assert close(result, wanted, 2e-6)


@pytest.mark.parametrize("format", get_args(CacheFormat))
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_any_format_of_the_cache_holds_keys_and_values_to_its_precision(format, dtype, level):
    qkv, positions, table, head_dim, options = case("norms", dtype)
    found = rope(qkv, positions, table, new_cache(head_dim, format), **options)
    wanted = exact(qkv, positions, table, head_dim, **options)
    for result, expected in zip(found[1:], wanted[1:], strict=True):
        share = STORED.get(format, {"float16": 2**-11, "bfloat16": 2**-8}.get(format, 2e-6))
        assert ((result.double() - expected).abs() <= 1.001 * share * expected.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("format", get_args(CacheFormat))
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_values_are_stored_as_by_the_reference(format, dtype, level):
    qkv, positions, table, head_dim, options = case("plain", dtype)
    caches = [new_cache(head_dim, format) for _ in range(2)]
    rope(qkv, positions, table, caches[0], **options)
    with use_face("reference"):
        rope(qkv, positions, table, caches[1], **options)
    assert torch.equal(caches[0].value.view(torch.uint8), caches[1].value.view(torch.uint8))
    assert caches[0].value_scale is None or torch.equal(caches[0].value_scale, caches[1].value_scale)


@pytest.mark.parametrize("kind", ["plain", "interleaved", "Gemma's norms"])
def test_a_token_has_the_same_bits_in_any_batch(kind, level, num_threads):
    torch.manual_seed(0)
    _, _, table, head_dim, options = case(kind, torch.bfloat16)
    qkv, positions = random_qkv(90, head_dim, torch.bfloat16), torch.arange(90) % 64
    outs = []
    for size in (1, 90):
        cache = allocate_kv_cache(12, 16, KV_HEADS, head_dim, "int8_per_token_head")
        parts = zip(qkv.split(size), positions.split(size), torch.arange(90).split(size), strict=True)
        queries = [rope_and_cache(x.clone(), HEADS, at, table, cache, slots, **options) for x, at, slots in parts]
        outs.append((torch.cat(queries), cache.key, cache.key_scale, cache.value))
    for alone, together in zip(*outs, strict=True):
        assert torch.equal(alone, together)


def test_half_split_pairs_equal_llama_of_transformers(face):
    torch.manual_seed(0)
    qkv, positions, table = random_qkv(9, 16), torch.arange(9) + 3, cos_sin(16)
    query, key, value = qkv.view(9, -1, 16).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    cos, sin = (part.repeat(1, 2)[None] for part in table[positions].chunk(2, dim=1))
    theirs = apply_half_split(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
    ours = rope(qkv, positions, table, new_cache(16))
    for mine, their in zip(ours, theirs, strict=False):
        assert torch.allclose(mine, their[0].transpose(0, 1), rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[2], value)


def test_interleaved_pairs_equal_gpt_j_of_transformers(face):
    torch.manual_seed(0)
    qkv, positions, table = random_qkv(9, 16), torch.arange(9) + 3, cos_sin(16)
    query, key, _ = qkv.view(9, -1, 16).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    cos, sin = (part[None] for part in table[positions].chunk(2, dim=1))
    ours = rope(qkv, positions, table, new_cache(16), interleaved=True)
    for mine, x in zip(ours, (query, key), strict=False):
        assert torch.allclose(mine, apply_interleaved(x[None], sin, cos)[0], rtol=1e-6, atol=1e-6)


def test_the_norm_of_a_head_is_the_norm_of_rows(face):
    torch.manual_seed(0)
    qkv, weight = random_qkv(5, 32), torch.randn(32)
    query, *_ = rope(qkv, torch.zeros(5, dtype=torch.int64), None, new_cache(32), q_norm=weight, norm_eps=1e-5)
    alone = rms_norm(qkv.view(5, -1, 32)[:, :HEADS].contiguous(), weight, 1e-5)
    assert torch.allclose(query, alone, rtol=1e-6, atol=1e-6)


def test_a_part_of_a_wider_tensor_is_treated_alike_and_nothing_beside_it_changes(face):
    torch.manual_seed(0)
    wide = torch.randn(5, 128 + 24)
    before, positions = wide.clone(), torch.arange(5)
    expected = rope(wide[:, 16:144].contiguous(), positions, cos_sin(16), new_cache(16))
    cache = new_cache(16)
    query = rope_and_cache(wide[:, 16:144], HEADS, positions, cos_sin(16), cache, 2 * positions + 1)
    assert torch.equal(query, expected[0])
    assert torch.equal(tokens_of(cache)[0][2 * positions + 1], expected[1])
    assert torch.equal(wide[:, :16], before[:, :16])
    assert torch.equal(wide[:, 16 + HEADS * 16 :], before[:, 16 + HEADS * 16 :])


def test_positions_tables_and_weights_may_be_columns_of_wider_tensors(face):
    torch.manual_seed(0)
    qkv, positions, table = random_qkv(3, 16), torch.tensor([3, 1, 2]), cos_sin(16)
    weights = {"q_norm": torch.rand(16), "k_norm": torch.rand(16)}
    apart = {name: spread(weight) for name, weight in weights.items()}
    found = rope(qkv, spread(positions), spread(table), new_cache(16), norm_eps=1e-6, **apart)
    wanted = exact(qkv, positions, table, 16, norm_eps=1e-6, **weights)
    assert all(close(ours, theirs, 2e-6) for ours, theirs in zip(found, wanted, strict=True))


def test_a_negative_slot_is_left_out_and_its_query_is_not(face):
    qkv, positions, table, head_dim, options = case("plain", torch.float32)
    cache, slots = new_cache(head_dim), torch.tensor([-1, 3, -1, 8, -5, 0, 1, 2, 23])
    query = rope_and_cache(qkv.clone(), HEADS, positions, table, cache, slots, **options)
    assert close(query, exact(qkv, positions, table, head_dim, **options)[0], 2e-6)
    assert tokens_of(cache)[0].flatten(1).any(1).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 8, 23]


def test_an_empty_step_is_an_empty_result(face):
    none = torch.zeros(0, dtype=torch.int64)
    assert rope_and_cache(torch.zeros(0, 128), HEADS, none, cos_sin(16), new_cache(16), none).shape == (
        0,
        HEADS,
        16,
    )


@pytest.mark.parametrize(("positions", "slots"), [([0, 4], [0, 1]), ([-1, 0], [0, 1]), ([0, 1], [0, 24])])
def test_what_lies_outside_is_refused(refusing_face, positions, slots):
    cache = new_cache(16)
    with pytest.raises(IndexError):
        rope_and_cache(torch.ones(2, 128), HEADS, torch.tensor(positions), cos_sin(16, 4), cache, torch.tensor(slots))


def test_wrong_arguments_are_named():
    qkv, positions, cache, table = torch.zeros(2, 64), torch.tensor([0, 1]), new_cache(8), torch.zeros(4, 8)
    with pytest.raises(ValueError, match="qkv must have shape"):
        rope_and_cache(qkv, 3, positions, table, cache, positions)
    with pytest.raises(ValueError, match=r"qkv must be floating point"):
        rope_and_cache(qkv.int(), 4, positions, table, cache, positions)
    with pytest.raises(ValueError, match=r"positions must be torch.int64"):
        rope_and_cache(qkv, 4, positions.int(), table, cache, positions)
    with pytest.raises(ValueError, match="positions must be given"):
        rope_and_cache(qkv, 4, None, table, cache, positions)
    with pytest.raises(ValueError, match="slot_mapping must have shape"):
        rope_and_cache(qkv, 4, positions, table, cache, positions[:1])
    with pytest.raises(ValueError, match="at most head_dim=8 wide, got 10"):
        rope_and_cache(qkv, 4, positions, torch.zeros(4, 10), cache, positions)
    with pytest.raises(ValueError, match="cos_sin_cache must be even"):
        rope_and_cache(qkv, 4, positions, torch.zeros(4, 7), cache, positions)
    with pytest.raises(ValueError, match="k_norm must have shape"):
        rope_and_cache(qkv, 4, positions, table, cache, positions, k_norm=torch.zeros(4))
