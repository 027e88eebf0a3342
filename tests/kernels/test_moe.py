"""Mixture of experts: routing and products, against loops in float64 and the blocks of transformers."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.expert_weight import Routing
from vllm_kernels.ops.moe import fill, fill_fp8, fill_mxfp4, fill_quantized, moe, new_weight, route, rows
from vllm_kernels.ops.mxfp4 import fill_mxfp4 as fill_projection
from vllm_kernels.ops.mxfp4 import new_weight as new_mxfp4

ROUTERS = {
    "softmax": {"top_k": 3},
    "softmax renormalised": {"top_k": 8, "renormalize": True},
    "one": {"top_k": 1, "scale": 2.5},
    "all": {"top_k": 24, "renormalize": True},
    "sigmoid": {"top_k": 2, "score": "sigmoid"},
    "biased": {"top_k": 5, "score": "sigmoid", "bias": True, "renormalize": True},
    "groups by their best": {"top_k": 6, "groups": 4, "top_groups": 2},
    "groups of three, biased": {
        "top_k": 4,
        "score": "sigmoid",
        "bias": True,
        "groups": 8,
        "top_groups": 3,
        "scale": 2.5,
    },
    "groups of one, biased": {"top_k": 4, "bias": True, "groups": 24, "top_groups": 5},
    "all groups": {"top_k": 4, "bias": True, "groups": 3, "top_groups": 3},
}
FORMATS = {
    "float": {},
    "fp8": {"format": "fp8"},
    "int8": {"format": "int8"},
    "int8 weight only": {"format": "int8", "activation_bits": None},
    "int4": {"format": "int4", "group_size": 16},
    "int4 weight only": {"format": "int4", "group_size": 24, "activation_bits": None},
}
GATES = {
    "silu": lambda gate, value: functional.silu(gate) * value,
    "gelu": lambda gate, value: functional.gelu(gate) * value,
    "gelu_tanh": lambda gate, value: functional.gelu(gate, approximate="tanh") * value,
    "swigluoai": lambda gate, value: (
        gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7)) * (value.clamp(-7, 7) + 1)
    ),
}


def routed_by_hand(logits, top_k, score="softmax", renormalize=False, scale=1.0, bias=None, groups=1, top_groups=1):
    """One token at a time, in Python's own numbers: lists of experts and of weights."""
    found = []
    for row in logits.double():
        scores = (row.softmax(0) if score == "softmax" else row.sigmoid()).tolist()
        choice = scores if bias is None else [s + b for s, b in zip(scores, bias.double().tolist(), strict=True)]
        size = len(scores) // groups

        def worth(group, choice=choice, size=size):
            best = sorted(choice[group * size : (group + 1) * size], reverse=True)
            return best[0] if bias is None else sum(best[:2])

        kept = sorted(range(groups), key=lambda group: (-worth(group), group))[:top_groups]
        allowed = [expert for expert in range(len(scores)) if expert // size in kept]
        chosen = sorted(allowed, key=lambda expert, choice=choice: (-choice[expert], expert))[:top_k]
        total = sum(scores[expert] for expert in chosen) if renormalize else 1.0
        found.append((chosen, [scores[expert] / total * scale for expert in chosen]))
    return [chosen for chosen, _ in found], torch.tensor([weights for _, weights in found], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ROUTERS)
def test_routing_equals_one_done_by_hand(face, name, dtype):
    torch.manual_seed(0)
    options = dict(ROUTERS[name])
    if options.get("bias"):
        options["bias"] = torch.randn(24) / 2
    # No two of a row that rounding could make equal.
    logits = (torch.rand(9, 24).argsort(dim=1) / 4 - 3).to(dtype)
    experts, weights = routed_by_hand(logits, **options)
    routing = route(logits, **options)
    assert routing.experts.tolist() == experts
    assert routing.experts.dtype == torch.int32 and routing.weights.shape == routing.experts.shape
    assert routing.weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(routing.weights.double(), weights, rtol=2e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_router_equals_one_done_by_hand(data):
    groups = data.draw(st.integers(1, 5))
    num_experts = groups * data.draw(st.integers(1, 9))
    top_groups = data.draw(st.integers(1, groups))
    options = {
        "top_k": data.draw(st.integers(1, num_experts // groups * top_groups)),
        "score": data.draw(st.sampled_from(["softmax", "sigmoid"])),
        "renormalize": data.draw(st.booleans()),
        "groups": groups,
        "top_groups": top_groups,
    }
    count = data.draw(st.integers(0, 40))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        options["bias"] = torch.randn(num_experts)
    logits = (
        torch.randn(count, 2 * num_experts)[:, ::2] if data.draw(st.booleans()) else torch.randn(count, num_experts)
    )
    experts, weights = routed_by_hand(logits, **options)
    for face in ("reference", "triton"):
        with use_face(face):
            routing = route(logits, **options)
        assert routing.experts.tolist() == experts
        assert torch.allclose(routing.weights.double(), weights.view(count, options["top_k"]), rtol=1e-5, atol=1e-9)


def test_the_lower_expert_wins_among_equals(face):
    assert route(torch.zeros(2, 10), 3).experts.tolist() == [[0, 1, 2]] * 2
    routing = route(torch.zeros(2, 12), 3, score="sigmoid", bias=torch.zeros(12), groups=4, top_groups=2)
    assert routing.experts.tolist() == [[0, 1, 2]] * 2
    assert route(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4).experts.tolist() == [[1, 2, 4, 3]]


def test_rows_with_nan_get_experts_that_exist_and_leave_others_alone(face):
    logits = torch.zeros(3, 6)
    logits[0, 2] = torch.nan
    logits[1] = -torch.inf
    routing = route(logits, 3, renormalize=True)
    assert ((routing.experts >= 0) & (routing.experts < 6)).all()
    assert routing.weights[:2].isnan().all()
    assert torch.allclose(routing.weights[2], torch.full((3,), 1 / 3))


def pair_of(num_experts, hidden, intermediate, dtype, **options):
    """``gate_up`` and ``down``, filled with numbers that all types have: calls with one seed make twins."""
    up = new_weight(num_experts, 2 * intermediate, hidden, dtype, gated=True, **options)
    down = new_weight(num_experts, hidden, intermediate, dtype, **options)
    numbers = torch.Generator().manual_seed(1)
    for weight in (up, down):
        for expert in range(num_experts):
            entries = torch.randn(weight.out_features, weight.in_features, generator=numbers) / 4
            fill(weight, expert, entries.bfloat16().float())
    return up, down


def entries_of(weight) -> torch.Tensor:
    every = torch.arange(weight.out_features)
    return torch.stack([rows(weight, expert, every) for expert in range(weight.num_experts)]).double()


def random_routing(count, num_experts, top_k):
    experts = torch.rand(count, num_experts).argsort(dim=1)[:, :top_k]
    return Routing(experts.int(), torch.rand(count, top_k))


def rounded(x, options):
    """Activations ``[k]`` as a format has them: as they are, e4m3 over the row, or 8 bits a group."""
    if options.get("format") == "fp8":
        scale = x.float().abs().max() / torch.tensor(448.0)
        return (x.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()
    if options.get("format") in ("int8", "int4") and options.get("activation_bits", 8):
        pieces = []
        for piece in x.float().split(options.get("group_size") or 512):
            peak = piece.abs().max().view(1)
            pieces.append((piece * (torch.full_like(peak, 127) / peak)).round().double() * peak.double() / 127)
        return torch.cat(pieces)
    return x.double()


def by_hand(x, routing, up, down, options, activation="silu", biases=None):
    """Token by token in float64; what an expert makes in between is rounded to the type of ``x``."""
    up_bias, down_bias = (bias.double() for bias in biases) if biases else ([0] * up.num_experts,) * 2
    up_entries, down_entries = entries_of(up), entries_of(down)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for expert, weight in zip(routing.experts[token].tolist(), routing.weights[token].tolist(), strict=True):
            if 0 <= expert < up.num_experts:
                gate, value = (up_entries[expert] @ rounded(x[token], options) + up_bias[expert]).chunk(2)
                hidden = GATES[activation](gate, value).to(x.dtype)
                out[token] += weight * (down_entries[expert] @ rounded(hidden, options) + down_bias[expert])
    return out


def close(result, exact, face, options=None):
    """Within a few roundings; within a per cent where 8 bits may fall to the other side of an edge in between."""
    error = (result.double() - exact).norm() / exact.norm()
    step = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[result.dtype]
    by_steps = (
        options and options["format"] != "mxfp4" and (options["format"] == "fp8" or options.get("activation_bits", 8))
    )
    rough = by_steps or (face == "eager" and result.dtype != torch.float32)
    return error < (0.01 if rough else 2 * step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_experts_equal_a_loop_in_float64(face, name, dtype):
    torch.manual_seed(0)
    options = FORMATS[name]
    weights, wide = pair_of(4, 72, 40, dtype, **options), pair_of(4, 72, 40, torch.float32, **options)
    x, routing = torch.randn(11, 72).to(dtype), random_routing(11, 4, 3)
    result = moe(x, routing, *weights)
    assert result.dtype == dtype and result.shape == x.shape
    assert close(result, by_hand(x, routing, *wide, options), face, options)


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("name", ["float", "int8 weight only"])
def test_every_gate_serves(face, activation, name):
    torch.manual_seed(0)
    options = FORMATS[name]
    weights = pair_of(3, 33, 17, torch.float32, **options)
    x, routing = 4 * torch.randn(5, 33), random_routing(5, 3, 2)
    biases = torch.randn(3, 34), torch.randn(3, 33)
    result = moe(x, routing, *weights, activation, gate_up_bias=biases[0], down_bias=biases[1])
    assert close(result, by_hand(x, routing, *weights, options, activation, biases), face, options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [3, 50])
def test_experts_of_mxfp4_with_biases_equal_a_loop_in_float64(face, dtype, count):
    torch.manual_seed(0)
    options = {"format": "mxfp4"}
    weights, wide = pair_of(4, 96, 64, dtype, **options), pair_of(4, 96, 64, torch.float32, **options)
    x, routing = torch.randn(count, 96).to(dtype), random_routing(count, 4, 2)
    biases = torch.randn(4, 128).to(dtype), torch.randn(4, 96).to(dtype)
    result = moe(x, routing, *weights, "swigluoai", gate_up_bias=biases[0], down_bias=biases[1])
    assert result.dtype == dtype
    assert close(result, by_hand(x, routing, *wide, options, "swigluoai", biases), face, options)


def test_float64_is_served(face):
    torch.manual_seed(0)
    weights = pair_of(3, 33, 17, torch.float64)
    x, routing = torch.randn(5, 33).double(), random_routing(5, 3, 2)
    assert torch.allclose(moe(x, routing, *weights), by_hand(x, routing, *weights, {}), rtol=1e-12)


@pytest.mark.parametrize("dtype, invariant", [(torch.float32, False), (torch.float16, False), (torch.float16, True)])
def test_many_tokens_and_columns_equal_a_loop_in_float64(face, dtype, invariant):
    torch.manual_seed(0)
    weights, wide = pair_of(3, 200, 136, dtype), pair_of(3, 200, 136, torch.float32)
    x, routing = torch.randn(140, 200).to(dtype), random_routing(140, 3, 2)
    routing.experts[:130] = torch.tensor([2, 0], dtype=torch.int32)  # one expert has few tokens, two have many
    with use_batch_invariance(invariant):
        assert close(moe(x, routing, *weights), by_hand(x, routing, *wide, {}), face)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_sizes_and_experts_outside_equal_a_loop_in_float64(data):
    num_experts, top_k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    hidden, intermediate = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
    count = data.draw(st.integers(0, 20))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    routing = Routing(torch.randint(-2, num_experts + 3, (count, top_k)).int(), torch.rand(count, 2 * top_k)[:, ::2])
    routing.experts[routing.experts > num_experts] = 2**31 - 1
    routing.weights[routing.experts < 0] = torch.nan
    x = torch.randn(hidden, count).T  # not contiguous
    for face in ("reference", "eager", "cpu", "triton"):
        with use_face(face):
            weights = pair_of(num_experts, hidden, intermediate, torch.float32)
            result = moe(x, routing, *weights)
            exact = by_hand(x, routing, *weights, {})
        assert torch.allclose(result.double(), exact, rtol=1e-4, atol=1e-5)


def test_nobodys_tokens_are_zero_and_nan_stays_in_its_row(face):
    weights = pair_of(3, 40, 24, torch.float32)
    x, routing = torch.randn(4, 40), random_routing(4, 3, 2)
    alone = moe(x, routing, *weights)
    routing.experts[1] = -1
    x[2, 7] = torch.nan
    result = moe(x, routing, *weights)
    assert torch.equal(result[1], torch.zeros(40)) and result[2].isnan().all()
    assert torch.allclose(result[[0, 3]], alone[[0, 3]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_nan_of_rounded_activations_stays_in_its_row(face, name):
    weights = pair_of(3, 40, 24, torch.float32, **FORMATS[name])
    x, routing = torch.randn(3, 40), random_routing(3, 3, 2)
    alone = moe(x, routing, *weights)
    x[1, 7] = torch.inf
    result = moe(x, routing, *weights)
    assert result[1].isnan().all() and torch.equal(result[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_results_are_the_same_bits_every_time(face, dtype):
    weights = pair_of(5, 40, 24, dtype)
    x, routing = torch.randn(23, 40).to(dtype), random_routing(23, 5, 3)
    assert torch.equal(moe(x, routing, *weights), moe(x, routing, *weights))


def loaded(block):
    """The experts of a block of transformers as our weights."""
    experts = block.experts
    count, both, hidden = experts.gate_up_proj.shape
    up = new_weight(count, both, hidden, torch.float32, gated=True)
    down = new_weight(count, hidden, both // 2, torch.float32)
    for expert in range(count):
        # Gate and value come one after the other, as checkpoints have them.
        fill(up, expert, experts.gate_up_proj[expert, both // 2 :].detach(), start=both // 2)
        fill(up, expert, experts.gate_up_proj[expert, : both // 2].detach())
        fill(down, expert, experts.down_proj[expert].detach())
    return up, down


SMALL = {"hidden_size": 32, "num_experts_per_tok": 3}
BLOCKS = {
    "Qwen 3": lambda: (
        Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**SMALL, num_experts=8, moe_intermediate_size=24, norm_topk_prob=False)),
        {},
    ),
    "Mixtral": lambda: (
        MixtralSparseMoeBlock(MixtralConfig(**SMALL, num_local_experts=8, intermediate_size=24)),
        {"renormalize": True},
    ),
    "DeepSeek-V3": lambda: (
        DeepseekV3MoE(
            DeepseekV3Config(
                **SMALL, n_routed_experts=16, moe_intermediate_size=24, n_group=4, topk_group=2, n_shared_experts=1
            )
        ),
        {"score": "sigmoid", "renormalize": True, "scale": 2.5, "groups": 4, "top_groups": 2},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BLOCKS)
def test_the_experts_of_transformers(face, name):
    torch.manual_seed(0)
    block, options = BLOCKS[name]()
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    if name == "DeepSeek-V3":
        options["bias"] = block.gate.e_score_correction_bias.normal_(std=0.2)
    x = torch.randn(13, 32)
    expected = block(x.view(1, 13, 32))[0]
    if name == "DeepSeek-V3":
        expected = expected - block.shared_experts(x)
    result = moe(x, route(functional.linear(x, block.gate.weight), 3, **options), *loaded(block))
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_experts_of_gpt_oss(face):
    torch.manual_seed(0)
    config = GptOssConfig(hidden_size=32, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    experts = GptOssExperts(config)
    for parameter in experts.parameters():
        parameter.normal_(std=0.5)
    up, down = pair_of(6, 32, 24, torch.float32)
    for expert in range(6):
        both = experts.gate_up_proj[expert].T
        fill(up, expert, torch.cat([both[0::2], both[1::2]]))
        fill(down, expert, experts.down_proj[expert].T)
    bias = torch.cat([experts.gate_up_proj_bias[:, 0::2], experts.gate_up_proj_bias[:, 1::2]], dim=1)
    x, routing = 4 * torch.randn(9, 32), random_routing(9, 6, 2)
    result = moe(x, routing, up, down, "swigluoai", gate_up_bias=bias, down_bias=experts.down_proj_bias)
    expected = experts(x, routing.experts.long(), routing.weights)
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_mxfp4_checkpoints_are_kept_as_they_are(face):
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (10, 3, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (10, 3), dtype=torch.uint8)
    weight, projection = new_weight(2, 10, 96, torch.float32, format="mxfp4"), new_mxfp4(10, 96, torch.float32)
    for start, end in ((4, 10), (0, 4)):
        fill_mxfp4(weight, 1, blocks[start:end], scales[start:end], start)
        fill_projection(projection, blocks[start:end], scales[start:end], start)
    ids = torch.tensor([9, 0, 4])
    assert torch.equal(rows(weight, 1, ids), projection.rows(ids))
    assert 2 * 10 * 96 * 17 // 32 <= weight.nbytes <= 2 * 10 * (96 * 17 // 32 + 1)


@pytest.mark.parametrize("name", ["int8", "int4 weight only"])
def test_quantised_checkpoints_are_kept_as_they_are(face, name):
    torch.manual_seed(0)
    weight = new_weight(2, 10, 37, torch.float32, **FORMATS[name])
    bits = 8 if "int8" in name else 4
    q = torch.randint(0, 1 << bits, (10, 37), dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (10, weight.groups), dtype=torch.uint8)
    scales = torch.rand(10, weight.groups).half()
    for first, last in ((6, 10), (0, 6)):
        fill_quantized(weight, 1, q[first:last], scales[first:last], zeros[first:last], first)
    size = FORMATS[name].get("group_size") or 37
    spread = [table.double().repeat_interleave(size, dim=1)[:, :37] for table in (scales, zeros)]
    kept = rows(weight, 1, torch.tensor([9, 0, 4]))
    assert torch.allclose(kept.double(), ((q.double() - spread[1]) * spread[0])[[9, 0, 4]], rtol=1e-6)
    assert weight.nbytes >= 2 * 10 * 37 * bits // 8


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_fp8_checkpoints_are_kept_as_they_are(face, per):
    torch.manual_seed(0)
    weight = new_weight(2, 10, 37, torch.float32, format="fp8")
    entries = (100 * torch.randn(10, 37)).to(torch.float8_e4m3fn)
    scales = torch.rand(10) if per == "channel" else torch.tensor(0.3)
    fill_fp8(weight, 1, entries[3:], scales[3:] if per == "channel" else scales, start=3)
    fill_fp8(weight, 1, entries[:3], scales[:3] if per == "channel" else scales)
    exact = entries.double() * scales.double().expand(10)[:, None]
    assert torch.allclose(rows(weight, 1, torch.tensor([9, 0, 4])).double(), exact[[9, 0, 4]], rtol=1e-6)
    assert weight.nbytes >= 2 * 10 * 37


WRONG_ROUTERS = {
    "logits must have shape": {"logits": torch.zeros(3)},
    "logits must be floating": {"logits": torch.zeros(3, 6, dtype=torch.int32)},
    "score must be one of softmax, sigmoid": {"score": "tanh"},
    r"bias must have shape \[6\]": {"bias": torch.zeros(5)},
    "groups must divide the 6 experts": {"groups": 4},
    "top_groups must be from 1 to 2": {"groups": 2, "top_groups": 3},
    "top_k must be from 1 to the 3 experts": {"groups": 2, "top_k": 4},
    "top_k must be from 1": {"top_k": 0},
}


@pytest.mark.parametrize("words", WRONG_ROUTERS)
def test_wrong_arguments_of_route_are_named(words):
    with pytest.raises(ValueError, match=words):
        route(**{"logits": torch.zeros(3, 6), "top_k": 2, **WRONG_ROUTERS[words]})


def test_wrong_arguments_of_weights_are_named():
    sizes = (2, 10, 24, torch.float32)
    with pytest.raises(ValueError, match="num_experts must be at least 1"):
        new_weight(0, *sizes[1:])
    with pytest.raises(ValueError, match="out_features of a gated weight must be even"):
        new_weight(2, 9, 24, torch.float32, gated=True)
    with pytest.raises(ValueError, match="format must be one of int8, int4, fp8, mxfp4 or None"):
        new_weight(*sizes, format="fp4")
    with pytest.raises(ValueError, match="group_size is for int8 and int4"):
        new_weight(*sizes, format="fp8", group_size=8)
    with pytest.raises(ValueError, match="in_features must be a multiple of 32, got 24"):
        new_weight(*sizes, format="mxfp4")
    fourth = new_weight(2, 10, 64, torch.float32, format="mxfp4")
    blocks, powers = torch.zeros(10, 2, 16, dtype=torch.uint8), torch.zeros(10, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="weight must be of format mxfp4"):
        fill_mxfp4(new_weight(*sizes), 0, blocks, powers)
    with pytest.raises(ValueError, match="expert must be from 0 to 1, got 2"):
        fill_mxfp4(fourth, 2, blocks, powers)
    with pytest.raises(ValueError, match="rows 1 to 11 are outside"):
        fill_mxfp4(fourth, 0, blocks, powers, 1)
    with pytest.raises(ValueError, match="group_size must be a multiple of 8"):
        new_weight(*sizes, format="int4", group_size=12)
    plain, small, fp8 = (new_weight(*sizes, format=format) for format in (None, "int4", "fp8"))
    with pytest.raises(ValueError, match="expert must be from 0 to 1, got 2"):
        fill(plain, 2, torch.zeros(1, 24))
    with pytest.raises(ValueError, match="rows 8 to 11 are outside"):
        fill(plain, 0, torch.zeros(3, 24), 8)
    with pytest.raises(ValueError, match=r"rows must have shape \[any, 24\]"):
        fill(plain, 0, torch.zeros(3, 10))
    with pytest.raises(ValueError, match="format int8 or int4"):
        fill_quantized(fp8, 0, *torch.zeros(3, 10, 24))
    q, table = torch.full((10, 24), 16, dtype=torch.uint8), torch.zeros(10, 1)
    with pytest.raises(ValueError, match="q must be below 16"):
        fill_quantized(small, 0, q, table, table.byte())
    with pytest.raises(ValueError, match="weight must be of format fp8"):
        fill_fp8(small, 0, q.to(torch.float8_e4m3fn), table)
    with pytest.raises(ValueError, match=r"scales must have shape \[10\]"):
        fill_fp8(fp8, 0, torch.zeros(10, 24).to(torch.float8_e4m3fn), torch.zeros(9))
    with pytest.raises(IndexError, match="an id is outside of the 10 rows"):
        rows(plain, 0, torch.tensor([10]))


def test_wrong_arguments_of_moe_are_named():
    up, down = pair_of(3, 12, 8, torch.float32)
    x, routing = torch.zeros(4, 12), random_routing(4, 3, 2)
    with pytest.raises(ValueError, match="gate_up must be gated"):
        moe(x, routing, down, down)
    with pytest.raises(ValueError, match="down must not be gated"):
        moe(x, routing, up, up)
    with pytest.raises(ValueError, match=r"down must be \[3, 12, 8\]"):
        moe(x, routing, up, new_weight(2, 12, 8, torch.float32))
    with pytest.raises(ValueError, match=r"down must be torch.float32"):
        moe(x, routing, up, new_weight(3, 12, 8, torch.float16))
    with pytest.raises(ValueError, match=r"x must have shape \[any, 12\]"):
        moe(x[:, 1:], routing, up, down)
    with pytest.raises(ValueError, match=r"experts must have shape \[4, any\]"):
        moe(x, random_routing(5, 3, 2), up, down)
    with pytest.raises(ValueError, match=r"experts must be torch.int32"):
        moe(x, Routing(routing.experts.long(), routing.weights), up, down)
    with pytest.raises(ValueError, match=r"weights must have shape \[4, 2\]"):
        moe(x, Routing(routing.experts, routing.weights[:, :1]), up, down)
    with pytest.raises(ValueError, match=r"gate_up_bias must have shape \[3, 16\]"):
        moe(x, routing, up, down, gate_up_bias=torch.zeros(3, 12))
    with pytest.raises(ValueError, match=r"down_bias must be torch.float32"):
        moe(x, routing, up, down, down_bias=torch.zeros(3, 12).half())
    with pytest.raises(ValueError, match="activation must be one of silu"):
        moe(x, routing, up, down, "relu")
