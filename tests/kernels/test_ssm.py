"""State-space layers: every face against loops in float64, and against the mixer of transformers."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.kernels.paged import spread
from vllm_kernels.backend import use_face
from vllm_kernels.ops.ssm import (
    SSMMetadata,
    causal_conv1d,
    causal_conv1d_update,
    chunk_scan,
    selective_state_update,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def metadata_of(lengths: list[int], slots: list[int], resumed: list[bool]) -> SSMMetadata:
    starts = torch.tensor([sum(lengths[:count]) for count in range(len(lengths) + 1)], dtype=torch.int32)
    return SSMMetadata(starts, torch.tensor(slots, dtype=torch.int32), torch.tensor(resumed), list(lengths))


def spread_out(metadata: SSMMetadata) -> None:
    for name in ("query_start_loc", "state_slots", "has_initial_state"):
        setattr(metadata, name, spread(getattr(metadata, name)))


def close(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> bool:
    bound = ROUNDING[dtype] * max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
    return torch.allclose(result.double(), exact, rtol=0, atol=bound)


# ---- the convolution ----


def convolved_by_hand(x, weight, bias, state, lengths, slots, resumed, silu):
    """float64, one number at a time."""
    x, weight, state = x.double(), weight.double(), state.double().clone()
    width, out, start = weight.shape[1], torch.empty_like(x), 0
    for length, slot, initial in zip(lengths, slots, resumed, strict=True):
        known = 0 <= slot < len(state)
        history = state[slot].T if known and initial else torch.zeros(width - 1, x.shape[1], dtype=torch.float64)
        inputs = torch.cat([history, x[start : start + length]])
        for token in range(length):
            total = (inputs[token : token + width] * weight.T).sum(0)
            total = total if bias is None else total + bias.double()
            out[start + token] = functional.silu(total) if silu else total
        if known and length:
            state[slot] = inputs[length:].T
        start += length
    return out, state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize(("silu", "biased"), [(True, True), (False, False)])
def test_the_convolution_is_that_of_the_loops(face, dtype, width, silu, biased):
    torch.manual_seed(0)
    lengths, slots, resumed = (
        [5, 1, 0, 70, 2, 1, 3],
        [3, 0, 6, 1, 4, -1, 99],
        [True, True, True, False, True] + [True] * 2,
    )
    x, weight = torch.randn(82, 140).to(dtype), torch.randn(140, width).to(dtype)
    bias = torch.randn(140).to(dtype) if biased else None
    state = torch.randn(7, 140, width - 1).to(dtype)
    expected, after = convolved_by_hand(x, weight, bias, state, lengths, slots, resumed, silu)
    metadata = metadata_of(lengths, slots, resumed)
    result = causal_conv1d(x, weight, bias, state, metadata, "silu" if silu else None)
    assert result.dtype == dtype and close(result, expected, dtype)
    assert torch.equal(state.double(), after)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
def test_a_further_token_is_the_convolution_of_one(face, dtype, width):
    torch.manual_seed(0)
    slots = [2, -1, 0, 9, 4]
    x, weight, bias = torch.randn(5, 300).to(dtype), torch.randn(300, width).to(dtype), torch.randn(300).to(dtype)
    state = torch.randn(5, 300, width - 1).to(dtype)
    expected, after = convolved_by_hand(x, weight, bias, state, [1] * 5, slots, [True] * 5, True)
    result = causal_conv1d_update(x, weight, bias, state, torch.tensor(slots, dtype=torch.int32))
    assert close(result, expected, dtype)
    assert torch.equal(state.double(), after)


def test_a_history_that_is_not_resumed_may_hold_anything(face):
    x, weight = torch.ones(3, 8), torch.ones(8, 4)
    state = torch.full((1, 8, 3), torch.nan)
    result = causal_conv1d(x, weight, None, state, metadata_of([3], [0], [False]), None)
    assert torch.equal(result, torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 8))
    assert torch.equal(state, torch.ones(1, 8, 3))


def test_parts_of_a_wider_projection_are_convolved(face):
    torch.manual_seed(0)
    wide, weight = torch.randn(9, 50), torch.randn(20, 4)
    states = torch.zeros(2, 2, 20, 3)
    metadata = metadata_of([4, 5], [1, 0], [False, False])
    result = causal_conv1d(wide[:, 10:30], weight, None, states[0], metadata)
    expected = causal_conv1d(wide[:, 10:30].contiguous(), weight, None, states[1], metadata)
    assert torch.allclose(result, expected, atol=1e-6) and torch.equal(states[0], states[1])


def test_a_bias_and_metadata_may_be_parts_of_wider_tensors(face):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 20), torch.randn(20, 4), torch.randn(40)[::2]
    metadata = metadata_of([1, 1, 1], [2, 9, 0], [True, False, True])
    spread_out(metadata)
    start = torch.randn(3, 20, 3)
    expected, after = convolved_by_hand(x, weight, bias, start, [1, 1, 1], [2, 9, 0], [True, False, True], True)
    for call, where in ((causal_conv1d, metadata), (causal_conv1d_update, metadata.state_slots)):
        state = start.clone()
        assert close(call(x, weight, bias, state, where), expected, torch.float32)
        assert close(state, after, torch.float32)


# ---- the recurrence ----


def random_inputs(tokens: int, heads: int, groups: int, head_dim: int, size: int, dtype: torch.dtype) -> dict:
    return {
        "x": torch.randn(tokens, heads, head_dim).to(dtype),
        "dt": torch.randn(tokens, heads).to(dtype),
        "a": -torch.rand(heads) - 0.1,
        "b": torch.randn(tokens, groups, size).to(dtype),
        "c": (torch.randn(tokens, groups, size) / size**0.5).to(dtype),
    }


def random_options(tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> dict:
    return {
        "d": torch.randn(heads),
        "z": torch.randn(tokens, heads, head_dim).to(dtype),
        "dt_bias": torch.randn(heads),
        "dt_softplus": True,
        "dt_limit": (0.05, 2.0),
    }


def scanned_by_hand(
    inputs, state, lengths, slots, resumed, d=None, z=None, dt_bias=None, dt_softplus=False, dt_limit=None
):
    """The recurrence in float64, one token and head at a time."""
    x, dt, a, b, c = (inputs[name].double() for name in ("x", "dt", "a", "b", "c"))
    state, out, start = state.double().clone(), torch.empty_like(x), 0
    each = x.shape[1] // b.shape[1]
    low, high = dt_limit or (0.0, inf)
    for length, slot, initial in zip(lengths, slots, resumed, strict=True):
        known = 0 <= slot < len(state)
        running = state[slot].clone() if known and initial else torch.zeros_like(state[0])
        for token in range(start, start + length):
            for head in range(x.shape[1]):
                step = dt[token, head] + (0 if dt_bias is None else dt_bias[head].double())
                step = torch.log1p(torch.exp(step)) if dt_softplus else step
                step = step.clamp(low, high)
                entering = step * x[token, head][:, None] * b[token, head // each][None, :]
                running[head] = torch.exp(step * a[head]) * running[head] + entering
                result = running[head] @ c[token, head // each]
                result = result if d is None else result + d[head].double() * x[token, head]
                if z is not None:
                    gate = z[token, head].double()
                    result = result * gate / (1 + torch.exp(-gate))
                out[token, head] = result
        if known and length:
            state[slot] = running
        start += length
    return out, state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optional", [False, True])
def test_a_further_token_is_a_step_of_the_recurrence(face, dtype, optional):
    torch.manual_seed(0)
    slots = [2, -1, 0, 9, 4]
    inputs = random_inputs(5, 6, 2, 20, 24, dtype)
    options = random_options(5, 6, 20, dtype) if optional else {}
    state = torch.randn(5, 6, 20, 24)
    if dtype == torch.float64:
        state = state.double()
    expected, after = scanned_by_hand(inputs, state, [1] * 5, slots, [True] * 5, **options)
    result = selective_state_update(
        **inputs, state=state, state_slots=torch.tensor(slots, dtype=torch.int32), **options
    )
    assert result.dtype == dtype and close(result, expected, dtype)
    assert close(state, after, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optional", [False, True])
def test_a_scan_in_chunks_is_the_recurrence(face, dtype, optional):
    torch.manual_seed(0)
    lengths, slots, resumed = [5, 150, 0, 64, 1, 3], [3, 0, 4, -1, 1, 99], [True, False, True, True, True, False]
    inputs = random_inputs(sum(lengths), 4, 2, 20, 24, dtype)
    options = random_options(sum(lengths), 4, 20, dtype) if optional else {"dt_softplus": True}
    state = torch.randn(5, 4, 20, 24, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    expected, after = scanned_by_hand(inputs, state, lengths, slots, resumed, **options)
    result = chunk_scan(**inputs, state=state, metadata=metadata_of(lengths, slots, resumed), **options)
    assert result.dtype == dtype and close(result, expected, dtype)
    assert close(state, after, dtype)


def test_a_head_that_no_program_has_whole_is_scanned_in_parts(face):
    torch.manual_seed(0)
    inputs, state = random_inputs(70, 2, 1, 72, 130, torch.float32), torch.randn(1, 2, 72, 130)
    expected, after = scanned_by_hand(inputs, state, [70], [0], [True], dt_softplus=True)
    result = chunk_scan(**inputs, state=state, metadata=metadata_of([70], [0], [True]), dt_softplus=True)
    assert close(result, expected, torch.float32) and close(state, after, torch.float32)


def test_numbers_of_heads_and_metadata_may_be_parts_of_wider_tensors(face):
    torch.manual_seed(0)
    inputs, slots = random_inputs(3, 6, 2, 20, 24, torch.float32), [2, -1, 0]
    options = {"d": torch.randn(12)[::2], "dt_bias": torch.randn(1).expand(6), "dt_softplus": True}
    inputs["a"] = inputs["a"].repeat_interleave(2)[::2]
    metadata = metadata_of([1, 1, 1], slots, [True, True, False])
    spread_out(metadata)
    start = torch.randn(3, 6, 20, 24)
    start[0] = 0  # of the sequence that begins
    expected, after = scanned_by_hand(inputs, start, [1] * 3, slots, [True] * 3, **options)
    where = ((chunk_scan, {"metadata": metadata}), (selective_state_update, {"state_slots": metadata.state_slots}))
    for call, slot_of in where:
        state = start.clone()
        if call is chunk_scan:
            state[0] = torch.nan  # is not read
        assert close(call(**inputs, state=state, **slot_of, **options), expected, torch.float32)
        assert close(state, after, torch.float32)


def test_states_of_sequences_that_begin_may_hold_anything(face):
    torch.manual_seed(0)
    inputs = random_inputs(4, 2, 1, 16, 16, torch.float32)
    state = torch.full((2, 2, 16, 16), torch.nan)
    result = chunk_scan(**inputs, state=state, metadata=metadata_of([4], [1], [False]), dt_softplus=True)
    assert result.isfinite().all() and state[1].isfinite().all() and state[0].isnan().all()


def test_a_state_in_16_bits_is_rounded_after_it_was_read(face):
    torch.manual_seed(0)
    inputs, state = random_inputs(2, 2, 1, 16, 16, torch.float32), torch.randn(2, 2, 16, 16).half()
    expected, after = scanned_by_hand(inputs, state, [1, 1], [0, 1], [True, True], dt_softplus=True)
    slots = torch.tensor([0, 1], dtype=torch.int32)
    result = selective_state_update(**inputs, state=state, state_slots=slots, dt_softplus=True)
    assert close(result, expected, torch.float32) and close(state, after, torch.float16)


@pytest.mark.triton
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_shapes(data):
    pytest.importorskip("triton")
    number = st.integers
    lengths = data.draw(st.lists(number(0, 90), min_size=1, max_size=3))
    groups, each = data.draw(number(1, 2)), data.draw(number(1, 2))
    head_dim, size = data.draw(number(1, 40)), data.draw(number(1, 40))
    resumed = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    slots = list(range(len(lengths)))
    torch.manual_seed(0)
    inputs = random_inputs(sum(lengths), groups * each, groups, head_dim, size, torch.float32)
    state = torch.randn(len(lengths), groups * each, head_dim, size)
    metadata, states = metadata_of(lengths, slots, resumed), [state.double(), state]
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    with use_face("reference"):
        expected = chunk_scan(**wide, state=states[0], metadata=metadata, dt_softplus=True)
    with use_face("triton"):
        result = chunk_scan(**inputs, state=states[1], metadata=metadata, dt_softplus=True)
    assert close(result, expected, torch.float32)
    assert close(states[1], states[0], torch.float32)


def test_a_layer_is_the_mixer_of_transformers(face):
    """A prompt in two pieces and then tokens, against the mixer's own torch operators."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=32, num_heads=4, head_dim=16, state_size=24, n_groups=2, expand=2, conv_kernel=4, chunk_size=8,
        num_hidden_layers=1, vocab_size=10, time_step_limit=(0.01, 1.0),
    )  # fmt: skip
    mixer = Mamba2Mixer(config, 0).eval()
    hidden = torch.randn(1, 40, 32)
    metadata = [metadata_of([21], [1], [False]), metadata_of([16], [1], [True])]
    conv_state, state = torch.full((3, 160, 3), torch.nan), torch.full((3, 4, 16, 24), torch.nan)
    slot = torch.tensor([1], dtype=torch.int32)
    options = {"d": mixer.D, "dt_bias": mixer.dt_bias, "dt_softplus": True, "dt_limit": (0.01, 1.0)}
    found = []
    with torch.no_grad():
        expected = mixer(hidden)[0]
        projected = mixer.in_proj(hidden[0])
        for place in ((0, 21), (21, 37), (37, 38), (38, 39), (39, 40)):
            z, xbc, dt = projected[slice(*place)].split([64, 160, 4], dim=1)
            weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
            if metadata:
                step = metadata.pop(0)
                convolved = causal_conv1d(xbc, weight, bias, conv_state, step)
            else:
                convolved = causal_conv1d_update(xbc, weight, bias, conv_state, slot)
            x, b, c = convolved.split([64, 48, 48], dim=1)
            scan_inputs = {
                "x": x.unflatten(1, (4, 16)),
                "dt": dt,
                "a": -torch.exp(mixer.A_log),
                "b": b.unflatten(1, (2, 24)),
                "c": c.unflatten(1, (2, 24)),
                "state": state,
            }
            if place[1] - place[0] > 1:
                y = chunk_scan(**scan_inputs, metadata=step, **options)
            else:
                y = selective_state_update(**scan_inputs, state_slots=slot, **options)
            found.append(mixer.out_proj(mixer.norm(y.flatten(1), z)))
    assert torch.allclose(torch.cat(found), expected, rtol=1e-4, atol=1e-5)
    assert state[0].isnan().all() and conv_state[2].isnan().all()


@pytest.mark.triton
def test_what_is_launched_is_what_is_compiled_ahead():
    """A layer with 16 heads of 64 and states of 128: each launch is a configuration, to the letter."""
    pytest.importorskip("triton")
    from vllm_kernels.triton.kernel import recorded

    torch.manual_seed(0)
    dtype = torch.float16
    inputs = random_inputs(2, 16, 1, 64, 128, dtype)
    options = {"d": torch.ones(16).half(), "dt_bias": torch.ones(16).half(), "dt_softplus": True}
    state, slots = torch.zeros(2, 16, 64, 128), torch.tensor([0, 1], dtype=torch.int32)
    metadata = metadata_of([2], [1], [True])
    x, weight, bias = torch.randn(2, 256).half(), torch.randn(256, 4).half(), torch.randn(256).half()
    conv_state = torch.zeros(2, 256, 3).half()
    with use_face("triton"), recorded() as launches:
        causal_conv1d(x, weight, bias, conv_state, metadata)
        causal_conv1d_update(x, weight, bias, conv_state, slots)
        selective_state_update(**inputs, state=state, state_slots=slots, **options)
        chunk_scan(**inputs, state=state, metadata=metadata, **options)
    assert len({kernel.name for kernel, _ in launches}) == 6
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)


def test_wrong_arguments_are_named():
    x, weight, state = torch.zeros(3, 8), torch.zeros(8, 4), torch.zeros(2, 8, 3)
    metadata, slots = metadata_of([2, 1], [0, 1], [True, True]), torch.zeros(3, dtype=torch.int32)
    inputs = random_inputs(3, 4, 2, 5, 6, torch.float32)
    kept = torch.zeros(2, 4, 5, 6)

    def scan(**changed):
        return chunk_scan(**{**inputs, "state": kept, "metadata": metadata, **changed})

    def update(**changed):
        return selective_state_update(**{**inputs, "state": kept, "state_slots": slots, **changed})

    for match, call in {
        "x must have shape": lambda: causal_conv1d(x[0], weight, None, state, metadata),
        "x must be floating point": lambda: causal_conv1d(x.int(), weight, None, state, metadata),
        "weight must have shape": lambda: causal_conv1d(x, weight[:7], None, state, metadata),
        "weight must be torch.float32": lambda: causal_conv1d(x, weight.half(), None, state, metadata),
        "weight must have a width of at least 2, got 1": lambda: causal_conv1d(x, weight[:, :1], None, state, metadata),
        "bias must have shape": lambda: causal_conv1d(x, weight, weight[0], state, metadata),
        "state must have shape": lambda: causal_conv1d(x, weight, None, state[..., :2], metadata),
        "state must be contiguous": lambda: causal_conv1d(
            x, weight, None, torch.zeros(8, 2, 3).transpose(0, 1), metadata
        ),
        "activation must be 'silu' or None, got 'relu'": lambda: causal_conv1d(
            x, weight, None, state, metadata, "relu"
        ),
        "metadata is of 3 tokens, but x has 2": lambda: causal_conv1d(x[:2], weight, None, state, metadata),
        "query_start_loc must have shape": lambda: scan(
            metadata=SSMMetadata(slots[:2], slots[:2], torch.ones(2).bool(), [2, 1])
        ),
        "has_initial_state must be torch.bool": lambda: scan(metadata=SSMMetadata(slots, slots[:2], slots[:2], [2, 1])),
        "state_slots must have shape": lambda: causal_conv1d_update(x, weight, None, state, slots[:2]),
        "state_slots must be torch.int32": lambda: update(state_slots=slots.long()),
        "dt must have shape": lambda: scan(dt=inputs["dt"][:, :3]),
        "b must have a number of groups that divides 4 heads, got 3": lambda: scan(b=torch.zeros(3, 3, 6)),
        "c must have shape": lambda: update(c=inputs["c"][:, :1]),
        "c must be torch.float32": lambda: update(c=inputs["c"].half()),
        "z must have shape": lambda: scan(z=inputs["x"][:, :3]),
        "a must have shape": lambda: scan(a=inputs["a"][:3]),
        "d must be floating point": lambda: scan(d=torch.zeros(4).int()),
        "dt_limit must be the least and the greatest": lambda: update(dt_limit=(2.0, 1.0)),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
