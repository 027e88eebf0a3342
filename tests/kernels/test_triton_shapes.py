"""The Triton kernels on shapes that hypothesis makes up, with all of their options, in both types of the interpreter.

Operations with a file of such shapes of their own (experts, latents, adapters, states, sampling, fp8, MXFP4) are there.
"""

from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kernels.paged import random_sequence, step_of
from tests.kernels.test_attention import attend, oracle
from vllm_kernels.backend import use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops import activation, norm
from vllm_kernels.ops.cache import allocate_kv_cache, copy_blocks, gather_kv, write_kv
from vllm_kernels.ops.linear import fill, linear
from vllm_kernels.ops.quantization import new_weight
from vllm_kernels.ops.rotary import rope_and_cache

pytest.importorskip("triton")

from vllm_kernels.triton import attention_plan

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = st.sampled_from(list(ROUNDING))
FORMATS = st.sampled_from([format for format in get_args(CacheFormat) if format != "bfloat16"])
WIDTHS = st.sampled_from([8, 40, 64, 80, 96, 112, 120, 128, 192, 256])
SEEDS = st.integers(0, 2**16)
few = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


def close(result: torch.Tensor, exact: torch.Tensor, rounding: float) -> bool:
    return torch.allclose(result.double(), exact.double(), rtol=rounding, atol=rounding)


@settings(few, max_examples=8)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 4, 7, 8]),
    head_dim=WIDTHS,
    block_size=st.integers(1, 20),
    format=FORMATS,
    dtype=DTYPES,
    window=st.none() | st.integers(1, 50),
    soft_cap=st.none() | st.floats(1, 30),
    alibi=st.booleans(),
    sinks=st.booleans(),
    split_tokens=st.sampled_from([8, 256]),
    seed=SEEDS,
)
@example([(1, 60)], 2, 4, 112, 16, "float16", torch.float16, None, None, False, True, 8, 0)
@example([(1, 60), (9, 3)], 1, 2, 120, 16, "fp8_e4m3", torch.float16, 30, 20.0, False, False, 8, 0)
def test_attention(
    lengths, kv_heads, group, head_dim, block_size, format, dtype, window, soft_cap, alibi, sinks, split_tokens, seed
):
    torch.manual_seed(seed)
    num_heads = kv_heads * group
    heads: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype}
    sequences = [random_sequence(new, new + old, **heads) for new, old in lengths]
    step = step_of(sequences, block_size, format=format)
    options = {
        "sliding_window": window,
        "soft_cap": soft_cap,
        "alibi_slopes": torch.rand(num_heads) if alibi else None,
        "sinks": torch.randn(num_heads).to(dtype) if sinks else None,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "SPLIT_TOKENS", split_tokens)
        result = attend(step, **options)
    # Slopes make scores of 80, whose last bit in fp32 is 5e-6 of a weight.
    exact = 5e-5 if alibi else 1e-5
    assert close(result, oracle(step, **options), 3e-3 if dtype == torch.float16 else exact)


@settings(few, max_examples=8)
@given(
    count=st.integers(0, 9),
    kv_heads=st.integers(1, 5),
    head_dim=WIDTHS,
    block_size=st.integers(1, 20),
    format=FORMATS,
    dtype=DTYPES,
    seed=SEEDS,
)
def test_caches_hold_what_the_reference_s_hold(count, kv_heads, head_dim, block_size, format, dtype, seed):
    torch.manual_seed(seed)
    key, value = (torch.randn(count, kv_heads, head_dim).to(dtype) for _ in range(2))
    slots = torch.randperm(6 * block_size)[:count] if 6 * block_size >= count else torch.arange(count) - count
    slots[: count // 3] = -1
    sources, targets = torch.randperm(6)[:4].split(2)
    found = []
    for face in ("triton", "reference"):
        cache = allocate_kv_cache(6, block_size, kv_heads, head_dim, format)
        with use_face(face):
            write_kv(key, value, cache, slots)
            copy_blocks(cache, sources, targets)
            found.append(gather_kv(cache, torch.arange(-1, 6 * block_size), dtype))
    for ours, true in zip(*found, strict=True):
        assert torch.equal(ours, true)


@settings(few, max_examples=8)
@given(
    count=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=WIDTHS,
    turned=st.floats(0, 1),
    interleaved=st.booleans(),
    norms=st.booleans(),
    unit_offset=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
def test_rotation(count, kv_heads, group, head_dim, turned, interleaved, norms, unit_offset, dtype, seed):
    torch.manual_seed(seed)
    heads, rotary_dim = kv_heads * group, 2 * round(turned * head_dim / 2)
    qkv = torch.randn(count, (heads + 2 * kv_heads) * head_dim).to(dtype)
    weights = {name: torch.rand(head_dim).to(dtype) if norms else None for name in ("q_norm", "k_norm")}
    angles = torch.randn(12, rotary_dim // 2)
    positions, slots = torch.randint(0, 12, (count,)), torch.arange(count) * 2 - 1
    found = []
    for face, wide in (("triton", dtype), ("reference", torch.float64)):
        format: CacheFormat = "float16" if dtype == torch.float16 and wide == dtype else "float32"
        cache = allocate_kv_cache(5, 4, kv_heads, head_dim, format)
        with use_face(face):
            query = rope_and_cache(
                qkv.to(wide, copy=True),
                heads,
                positions if rotary_dim else None,
                torch.cat([angles.cos(), angles.sin()], dim=1) if rotary_dim else None,
                cache,
                slots,
                norm_eps=1e-5,
                unit_offset=unit_offset and norms,
                interleaved=interleaved,
                **{name: None if weight is None else weight.to(wide) for name, weight in weights.items()},
            )
        found.append((query, cache.key, cache.value))
    for ours, true in zip(*found, strict=True):
        assert close(ours, true, ROUNDING[dtype])


@settings(few, max_examples=8)
@given(
    count=st.integers(0, 20),
    width=st.integers(1, 600),
    unit_offset=st.booleans(),
    biased=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
def test_norms_and_activations(count, width, unit_offset, biased, dtype, seed):
    torch.manual_seed(seed)
    x, residual, both = (torch.randn(count, size).to(dtype) for size in (width, width, 2 * width))
    weight, bias = torch.randn(width).to(dtype), torch.randn(width).to(dtype) if biased else None
    added = x + residual  # rounded once, as the stream is

    def wide(function: Any, *tensors: torch.Tensor | None, **options: Any) -> torch.Tensor:
        with use_face("reference"):
            return function(*(None if each is None else each.double() for each in tensors), **options)

    pairs = [
        (
            norm.rms_norm(x, weight, 1e-5, unit_offset=unit_offset),
            wide(norm.rms_norm, x, weight, eps=1e-5, unit_offset=unit_offset),
        ),
        (norm.layer_norm(x, weight, bias, 1e-2), wide(norm.layer_norm, x, weight, bias, eps=1e-2)),
    ]
    fused, stream = norm.fused_add_rms_norm(x, residual, weight, 1e-5, unit_offset=unit_offset)
    pairs += [(fused, wide(norm.rms_norm, added, weight, eps=1e-5, unit_offset=unit_offset)), (stream, added)]
    fused, stream = norm.fused_add_layer_norm(x, residual, weight, bias, 1e-2)
    pairs += [(fused, wide(norm.layer_norm, added, weight, bias, eps=1e-2)), (stream, added)]
    for gated in (
        activation.silu_and_mul,
        activation.gelu_and_mul,
        activation.gelu_tanh_and_mul,
        activation.swigluoai_and_mul,
    ):
        pairs.append((gated(both), wide(gated, both)))
    for plain in (activation.gelu, activation.gelu_tanh, activation.relu):
        pairs.append((plain(x), wide(plain, x)))
    for ours, true in pairs:
        assert ours.dtype == dtype and close(ours, true, ROUNDING[dtype])


@settings(few, max_examples=8)
@given(
    count=st.integers(0, 40),
    out_features=st.integers(1, 150),
    in_features=st.integers(1, 1300),
    bits=st.sampled_from([4, 8]),
    group_size=st.none() | st.sampled_from([32, 64, 128, 24]),
    by_bytes=st.booleans(),
    extras=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
def test_products_of_small_integers(count, out_features, in_features, bits, group_size, by_bytes, extras, dtype, seed):
    torch.manual_seed(seed)
    group_size = group_size if bits == 4 else None
    weight = new_weight(
        out_features, in_features, dtype, bits=bits, group_size=group_size, activation_bits=8 if by_bytes else None
    )
    fill(weight, torch.randn(out_features, in_features))
    x = torch.randn(count, in_features).to(dtype)
    bias, residual = (torch.randn(size).to(dtype) for size in ((out_features,), (count, out_features)))
    result = linear(x, weight, bias if extras else None, residual=residual if extras else None)
    exact = x.double() @ weight.rows(torch.arange(out_features)).double().T
    exact = exact + bias.double() + residual.double() if extras else exact
    # The rows of a weight are told in its type; rounded activations are within 1/254 of the largest of a group.
    rounding = 2e-2 if by_bytes else ROUNDING[dtype]
    assert result.shape == exact.shape and (result.double() - exact).norm() <= rounding * exact.norm() + 1e-6
