"""Adapters of many tokens: every face against ``x (W + scale B A)^T`` in float64, by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.ops.lora import (
    LoRAMetadata,
    LoRAWeights,
    allocate_lora_weights,
    lora_expand,
    lora_shrink,
    store_adapter,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ROUNDING = {torch.float64: 2**-45, torch.float32: 2**-20, torch.bfloat16: 2**-7, torch.float16: 2**-10}
RANKS = ((8, 8, 8), (5, 0, 30), (40, 40, 1), (0, 0, 0))
"""Of the slices of each adapter."""


def random_weights(ranks, sizes, in_features, dtype, max_rank=None) -> LoRAWeights:
    """Adapters of these ranks, and NaN wherever nothing may be read."""
    most = max_rank or max(max(of) for of in ranks)
    weights = allocate_lora_weights(len(ranks), sizes, most, in_features, dtype)
    weights.a.fill_(torch.nan)
    weights.b.fill_(torch.nan)
    for place, of in enumerate(ranks):
        slices = [
            (torch.randn(rank, in_features).to(dtype), torch.randn(size, rank).to(dtype)) if rank else None
            for rank, size in zip(of, sizes, strict=True)
        ]
        store_adapter(weights, place, slices, [0.5 + place + number for number in range(len(sizes))])
    return weights


def merged(weights: LoRAWeights, adapter: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``scale B A`` of all slices, float64 ``[out_features, in_features]``: what merging would add to a weight.

    And ``scale |B| |A|``, which rounding errors are relative to.
    """
    rows, sizes, start = [], [], 0
    for number, size in enumerate(weights.slice_sizes):
        rank = weights.ranks_host[adapter][number]
        a = weights.a[adapter, number, :rank].double()
        b = weights.b[adapter, start : start + size, :rank].double()
        scale = weights.scales[adapter, number].double()
        rows.append(scale * b @ a)
        sizes.append(scale * b.abs() @ a.abs())
        start += size
    return torch.cat(rows), torch.cat(sizes)


def apply(out: torch.Tensor, x: torch.Tensor, weights: LoRAWeights, adapters: list[int]) -> torch.Tensor:
    metadata = LoRAMetadata(list(adapters), weights.num_adapters)
    low = lora_shrink(x, weights, metadata)
    for token, adapter in enumerate(adapters):
        for number in range(len(weights.slice_sizes)):
            rank = weights.ranks_host[adapter][number] if adapter >= 0 else 0
            assert low[:, number, token, :rank].isfinite().all()
            low[:, number, token, rank:] = torch.nan  # nobody may look there
    out = out.clone()
    lora_expand(out, low, weights, metadata)
    return out


def check(weights: LoRAWeights, adapters: list[int], dtype: torch.dtype) -> None:
    """Against a weight with the adapter merged, in float64; what has no adapter keeps its bits."""
    x = torch.randn(len(adapters), weights.in_features).to(dtype)
    weight = torch.randn(weights.out_features, weights.in_features).double()
    before = (x.double() @ weight.T).to(dtype)
    result = apply(before, x, weights, adapters)
    for token, adapter in enumerate(adapters):
        if adapter < 0:
            assert torch.equal(result[token], before[token])
            continue
        added, size = merged(weights, adapter)
        # The sum of the first product is rounded, then the result.
        size = size @ x[token].double().abs() + before[token].double().abs()
        exact = before[token].double() + added @ x[token].double()
        assert ((result[token].double() - exact).abs() <= ROUNDING[dtype] * size + 1e-7).all()
        untouched = (added == 0).all(dim=1)
        assert torch.equal(result[token][untouched], before[token][untouched])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_those_of_a_merged_weight(face, dtype):
    torch.manual_seed(0)
    weights = random_weights(RANKS, (70, 20, 33), 300, dtype)
    check(weights, [1, 0, -1, 3, 1, 2, 0, -1, 1], dtype)


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256])
def test_every_rank_is_served(face, rank):
    torch.manual_seed(0)
    check(random_weights(((rank,), (8,)), (40,), 520, torch.float32), [0, 1, -1, 0], torch.float32)


def test_many_tokens_of_few_adapters(face):
    torch.manual_seed(0)
    weights = random_weights(RANKS[:3], (24, 8, 8), 48, torch.float32)
    check(weights, torch.randint(-1, 3, (150,)).tolist(), torch.float32)


@pytest.mark.triton
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shapes(data):
    number = st.integers
    sizes = data.draw(st.lists(number(1, 140), min_size=1, max_size=4))
    max_rank = data.draw(number(1, 70))
    of = st.lists(number(0, max_rank), min_size=len(sizes), max_size=len(sizes))
    ranks = data.draw(st.lists(of, min_size=1, max_size=4))
    adapters = data.draw(st.lists(number(-1, len(ranks) - 1), min_size=0, max_size=40))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    torch.manual_seed(0)
    weights = random_weights(ranks, sizes, data.draw(number(1, 600)), dtype, max_rank)
    pytest.importorskip("triton")
    with use_face("triton"):
        check(weights, adapters, dtype)


def test_parts_of_wider_tensors_are_served(face):
    torch.manual_seed(0)
    weights = random_weights(((4,), (7,)), (40,), 30, torch.float32)
    x, before, adapters = torch.randn(5, 50), torch.randn(5, 90), [1, -1, 0, 1, 1]
    metadata = LoRAMetadata(adapters, 2)
    wide = before.clone()
    lora_expand(wide[:, 20:60], lora_shrink(x[:, 9:39], weights, metadata), weights, metadata)
    expected = apply(before[:, 20:60].contiguous(), x[:, 9:39].contiguous(), weights, adapters)
    assert torch.allclose(wide[:, 20:60], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(wide[:, :20], before[:, :20]) and torch.equal(wide[:, 60:], before[:, 60:])


def test_a_place_is_used_again(face):
    torch.manual_seed(0)
    weights = random_weights(((9, 9), (3, 3)), (10, 6), 20, torch.float32)
    store_adapter(weights, 0, [None, (torch.randn(2, 20), torch.randn(6, 2))], 2.0)
    assert weights.ranks.tolist() == weights.ranks_host == [[0, 2], [3, 3]]
    check(weights, [0, 1, 0], torch.float32)
    store_adapter(weights, 0, [None, None], 1.0)
    check(weights, [0, 1, 0], torch.float32)


def test_the_next_step_has_other_adapters(face):
    torch.manual_seed(0)
    weights = random_weights(((9,), (3,)), (50,), 20, torch.float32)
    x, before = torch.randn(4, 20), torch.randn(4, 50)
    metadata = LoRAMetadata([0, 0, 0, 0], 2)
    for adapters in ([0, 0, 0, 0], [1, -1, 0, 1], [-1, -1, -1, -1], [0, 1, 0, 1]):
        metadata.refill(LoRAMetadata(adapters, 2))
        out = before.clone()
        lora_expand(out, lora_shrink(x, weights, metadata), weights, metadata)
        assert torch.equal(out, apply(before, x, weights, adapters))


def test_the_plan_of_a_captured_step_stays_in_its_memory():
    pytest.importorskip("triton")
    from vllm_kernels.triton.lora_plan import plan_for

    metadata = LoRAMetadata([2] * 9, 3)
    plan = plan_for(metadata, torch.device("cpu"))
    places = [tensor.data_ptr() for tensor in (plan.order, plan.adapters, plan.first, plan.counts)]
    assert all((place - places[0]) % 16 == 0 for place in places)
    metadata.refill(LoRAMetadata([2, 0, -1, 0, 1, 1, 1, -1, 2], 3))
    assert plan_for(metadata, torch.device("cpu")) is plan
    assert places == [tensor.data_ptr() for tensor in (plan.order, plan.adapters, plan.first, plan.counts)]
    assert plan.order.tolist() == [1, 3, 4, 5, 6, 0, 8, 0, 0]
    assert plan.adapters.tolist() == [0, 1, 2] and plan.first.tolist() == [0, 2, 5]
    assert plan.counts.tolist() == [2, 3, 2]


@pytest.mark.triton
def test_a_token_does_not_depend_on_the_others_where_that_is_asked_for():
    pytest.importorskip("triton")
    torch.manual_seed(0)
    weights = random_weights(((16,), (5,)), (40,), 2048, torch.float32)
    x, before, adapters = torch.randn(140, 2048), torch.randn(140, 40), torch.randint(-1, 2, (140,)).tolist()
    with use_face("triton"), use_batch_invariance(True):
        together = apply(before, x, weights, adapters)
        for token in (0, 7, 139):
            alone = apply(before[token : token + 1], x[token : token + 1], weights, [adapters[token]])
            assert torch.equal(alone[0], together[token])


@pytest.mark.triton
@pytest.mark.parametrize(("num_tokens", "rank"), [(1, 16), (64, 8)])
def test_what_is_launched_is_what_is_compiled_ahead(num_tokens, rank):
    """A merged projection of Llama 8B, narrow in its results: each launch is a configuration, to the letter."""
    pytest.importorskip("triton")
    from vllm_kernels.triton.kernel import recorded

    weights = random_weights([[rank] * 3] * 4, (64, 16, 16), 4096, torch.float16)
    x, out = torch.randn(num_tokens, 4096).half(), torch.randn(num_tokens, 96).half()
    with use_face("triton"), recorded() as launches:
        apply(out, x, weights, [3] * num_tokens)
    assert [kernel.name for kernel, _ in launches] == ["lora_shrink_kernel", "lora_expand_kernel"]
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), configuration.label


def test_wrong_arguments_are_named():
    weights = random_weights(((4, 2),), (6, 3), 10, torch.float32)
    x, out, metadata = torch.zeros(2, 10), torch.zeros(2, 9), LoRAMetadata([0, -1], 1)
    low = lora_shrink(x, weights, metadata)
    pair = (torch.zeros(4, 10), torch.zeros(6, 4))
    for match, call in {
        "max_rank must be at least 1, got 0": lambda: allocate_lora_weights(1, (3,), 0, 10, torch.float32),
        "slice_sizes must be one or more numbers": lambda: allocate_lora_weights(1, (), 4, 10, torch.float32),
        "dtype must be floating point": lambda: allocate_lora_weights(1, (3,), 4, 10, torch.int8),
        "adapter must be from 0 to 0, got 1": lambda: store_adapter(weights, 1, [None, None], 1.0),
        "slices must be of 2 slices, got 1": lambda: store_adapter(weights, 0, [None], 1.0),
        "scale must be of 2 slices, got 3": lambda: store_adapter(weights, 0, [None, None], [1.0, 1.0, 1.0]),
        "A of slice 0 must have shape": lambda: store_adapter(weights, 0, [(pair[0][:, :9], pair[1]), None], 1.0),
        "A of slice 0 must have a rank from 1 to 4, got 5": lambda: store_adapter(
            weights, 0, [(torch.zeros(5, 10), torch.zeros(6, 5)), None], 1.0
        ),
        "B of slice 1 must have shape": lambda: store_adapter(weights, 0, [None, pair], 1.0),
        "A of slice 0 must be floating point": lambda: store_adapter(weights, 0, [(pair[0].int(), pair[1]), None], 1.0),
        "adapters_host must be from -1 to 0, got 1": lambda: LoRAMetadata([0, 1], 1),
        "as many tokens and adapters": lambda: metadata.refill(LoRAMetadata([0], 1)),
        "x must have shape": lambda: lora_shrink(x[:, :9], weights, metadata),
        "x must be torch.float32": lambda: lora_shrink(x.half(), weights, metadata),
        "metadata must be of 1 tokens, got 2": lambda: lora_shrink(x[:1], weights, metadata),
        "metadata must be of 1 adapters, got 2": lambda: lora_shrink(x, weights, LoRAMetadata([0, -1], 2)),
        "out must have shape": lambda: lora_expand(out[:, :8], low, weights, metadata),
        "out must be torch.float32": lambda: lora_expand(out.half(), low, weights, metadata),
        "out must have contiguous rows": lambda: lora_expand(torch.zeros(9, 2).T, low, weights, metadata),
        "low must have shape": lambda: lora_expand(out, low[..., :3], weights, metadata),
        "low must be torch.float32": lambda: lora_expand(out, low.half(), weights, metadata),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
