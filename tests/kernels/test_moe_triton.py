"""What only the Triton kernels of experts have: the order of pairs, and what is compiled ahead."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_moe import FORMATS, pair_of
from vllm_kernels.backend import use_face
from vllm_kernels.expert_weight import Routing
from vllm_kernels.ops.moe import moe, route

pytest.importorskip("triton")

from vllm_kernels.triton import moe_align, moe_product, rounded
from vllm_kernels.triton.kernel import recorded


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 700),
    top_k=st.integers(1, 4),
    num_experts=st.integers(1, 40),
    block_m=st.sampled_from([16, 64]),
    lopsided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pairs_are_sorted_by_expert_into_blocks(count, top_k, num_experts, block_m, lopsided, seed):
    torch.manual_seed(seed)
    experts = torch.randint(-1, num_experts + 1, (count, top_k)).int()
    if lopsided:
        experts[count // 4 :] = num_experts - 1
    blocks = moe_align.align(Routing(experts, torch.ones(count, top_k)), num_experts, block_m)
    expected = []
    for expert in range(num_experts):
        pairs = (experts.flatten() == expert).nonzero().flatten().tolist()
        expected += [(expert, pairs[first : first + block_m]) for first in range(0, len(pairs), block_m)]
    found = [
        (expert, blocks.pairs[block * block_m :][:rows].tolist())
        for block, (expert, rows) in enumerate(zip(blocks.experts.tolist(), blocks.rows.tolist(), strict=True))
    ]
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == [(-1, [])] * (blocks.count - len(expected))


def test_what_is_launched_is_what_is_compiled_ahead(monkeypatch):
    """Of a small model in the list: its shapes are made as those of large ones are."""
    monkeypatch.setattr(moe_product, "MODELS", ((8, 2, 64, 32),))
    monkeypatch.setattr(rounded, "WIDTHS", (64, 32))
    monkeypatch.setattr(moe_product, "GPT_OSS", (8, 2, 64, 32))
    monkeypatch.setattr(moe_product, "SCHEMES", ())
    torch.manual_seed(0)
    dtype = torch.float16
    with use_face("triton"), recorded() as launches:
        for options in FORMATS.values():
            weights = pair_of(8, 64, 32, dtype, **options)
            moe_product.SCHEMES += (weights[0].scheme,)
            for count in (3, 270) if not options else (3,):
                routing = route(torch.randn(count, 8, dtype=dtype), 2, renormalize=True)
                moe(torch.randn(count, 64, dtype=dtype), routing, *weights)
        for count in (3, 100):
            routing = route(torch.randn(count, 8, dtype=dtype), 2, renormalize=True)
            weights = pair_of(8, 64, 32, dtype, format="mxfp4")
            biases = torch.zeros(8, 64, dtype=dtype), torch.zeros(8, 64, dtype=dtype)
            x = torch.randn(count, 64, dtype=dtype)
            moe(x, routing, *weights, "swigluoai", gate_up_bias=biases[0], down_bias=biases[1])
    seen = set()
    for kernel, configuration in launches:
        if kernel.name != "round_kernel":  # that of projections
            assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)
            seen.add(kernel.name)
    assert seen == {
        "route_kernel",
        "expert_count_kernel",
        "expert_start_kernel",
        "expert_place_kernel",
        "expert_align_kernel",
        "expert_product_kernel",
        "round_rows_kernel",
        "combine_kernel",
    }
