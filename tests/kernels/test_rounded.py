"""Activations of 8 bits: what norms and gates round, and the products that take it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.kernels.test_fp8 import error_of, to_fp8
from vllm_kernels.backend import use_face
from vllm_kernels.ops import activation, linear, norm, quantization, rounded
from vllm_kernels.ops.fp8 import fill_fp8, new_weight, set_input_scale
from vllm_kernels.rounded_activations import Rounded

FP8, INT8 = torch.float8_e4m3fn, torch.int8
FORMATS = {"e4m3": FP8, "int8": INT8}
GATES = {
    "silu": activation.silu_and_mul,
    "gelu": activation.gelu_and_mul,
    "gelu_tanh": activation.gelu_tanh_and_mul,
    "swigluoai": activation.swigluoai_and_mul,
}


def scale_of(x: torch.Tensor, given: bool) -> torch.Tensor | None:
    """One that some of the entries of ``x`` are beyond, as a checkpoint may have."""
    return torch.tensor([float(x.float().abs().mean()) / 60]) if given else None


def by_hand(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales [n, k] and [n]; quotients in fp32, then by lists of numbers."""
    values, scales = [], []
    for row in x.float():
        peak, top = row.abs().max(), torch.tensor(448.0 if dtype == FP8 else 127.0)
        step = peak / top if scale is None else scale[0]
        if scale is not None or (dtype == FP8 and peak > 0):
            units = row / step.expand_as(row)
        else:
            units = row * (top / peak) if peak > 0 else row
        if dtype == FP8:
            values.append(to_fp8(units.clamp(-448, 448)))
        else:
            whole = [round(unit) for unit in units.tolist()]  # ties to even
            values.append(torch.tensor([min(max(unit, -128), 127) for unit in whole]))
        scales.append(step)
    return torch.stack(values).double(), torch.stack(scales)


def same(result: Rounded, expected: Rounded) -> bool:
    """Exactly, but for the signs of zeros."""
    return torch.equal(result.values.float(), expected.values.float()) and torch.equal(result.scales, expected.scales)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_tokens_are_rounded_to_the_nearest(face, name, given, dtype):
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 300) * torch.tensor([1e-3, 1, 30])[:, None]).to(dtype)
    x[0, 0] = 0
    if name == "int8" and not given:  # ties
        x[1, 1, :9] = torch.tensor([127, 0.5, 1.5, -0.5, -1.5, 2.5, 126.5, -126.5, 3.5])
        x[1, 1].clamp_(-127, 127)
    scale = scale_of(x, given)
    values, scales = rounded.round_tokens(x, FORMATS[name], scale)
    expected = by_hand(x.view(6, 300), FORMATS[name], scale)
    assert values.dtype == FORMATS[name] and torch.equal(values.double().view(6, 300), expected[0])
    assert scales.dtype == torch.float32 and torch.equal(scales.view(6), expected[1])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("unit_offset", [False, True])
def test_norms_are_those_done_apart_and_rounded(face, name, given, dtype, unit_offset):
    torch.manual_seed(0)
    x, residual = torch.randn(7, 2, 80).to(dtype), torch.randn(7, 2, 80).to(dtype)
    weight = torch.randn(80).to(dtype)
    normed, total = norm.fused_add_rms_norm(x, residual, weight, 1e-5, unit_offset=unit_offset)
    scale = scale_of(normed, given)
    with use_face("reference"):
        expected = rounded.round_tokens(normed, FORMATS[name], scale)
        alone = rounded.round_tokens(norm.rms_norm(total, weight, 1e-5, unit_offset=unit_offset), FORMATS[name], scale)
    result, new_residual = rounded.fused_add_rms_norm(
        x, residual, weight, 1e-5, FORMATS[name], scale, unit_offset=unit_offset
    )
    assert same(result, expected) and torch.equal(new_residual, total)
    simple = rounded.rms_norm(total, weight, 1e-5, FORMATS[name], scale, unit_offset=unit_offset)
    # Another face's norm may be another number, which may be on the other side of an edge.
    assert same(simple, expected)
    difference = (
        simple.values.double() * simple.scales[..., None] - alone.values.double() * alone.scales[..., None]
    ).abs()
    steps = alone.scales[..., None] * (1 if name == "int8" else 32)
    assert (difference <= 1.01 * steps).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("given", [False, True])
def test_gates_are_those_done_apart_and_rounded(face, name, kind, given):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        x = 3 * torch.randn(5, 2, 84).to(dtype)
        gated = GATES[kind](x)
        scale = scale_of(gated, given)
        with use_face("reference"):
            expected = rounded.round_tokens(gated, FORMATS[name], scale)
        assert same(rounded.activation_and_mul(x, kind, FORMATS[name], scale), expected)


@pytest.mark.triton
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_sizes_give_the_same_numbers(data):
    count, width = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3000))
    dtype = data.draw(st.sampled_from([FP8, INT8]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, weight = torch.randn(2 * width, count).T, torch.randn(width)
    scale = scale_of(x, True) if count and data.draw(st.booleans()) else None
    with use_face("triton"):
        plain = norm.rms_norm(x[:, :width], weight, 1e-6), activation.silu_and_mul(x)
        results = (
            rounded.rms_norm(x[:, :width], weight, 1e-6, dtype, scale),
            rounded.activation_and_mul(x, "silu", dtype, scale),
        )
    with use_face("reference"):
        for each, result in zip(plain, results, strict=True):
            assert same(result, rounded.round_tokens(each, dtype, scale))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_no_numbers_stay_alone(face, name):
    x = torch.randn(5, 40)
    x[0] = 0
    x[1, 3] = torch.nan
    x[2, 39] = -torch.inf
    values, scales = rounded.round_tokens(x, FORMATS[name])
    assert scales.isnan().tolist() == [False, True, True, False, False] and scales[0] == 0
    assert not values[:3].float().any()
    given = rounded.round_tokens(x[2:], FORMATS[name], torch.tensor([0.01]))
    assert given.values[0, 39].float() == (-448 if name == "e4m3" else -128)
    assert given.scales.tolist() == [torch.tensor(0.01).item()] * 3
    if name == "int8":
        assert rounded.round_tokens(x[1:2], INT8, torch.tensor([0.01])).values[0, 3] == 0


def fp8_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool = False):
    """A merged projection: two parts with a scale each, and float64 of what it stands for."""
    weight = new_weight(out_features, in_features, dtype, gated=gated)
    entries = torch.randn(out_features, in_features).to(FP8)
    half, matrix = out_features // 2, entries.double()
    for start, scale in ((half, 0.25), (0, 0.7)):
        part = entries[start : start + (half if start == 0 else out_features - half)]
        fill_fp8(weight, part, torch.tensor([scale]), start)
        matrix[start : start + len(part)] *= torch.tensor(scale).double()
    return weight, matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_given_scale_of_activations_serves_fp8_weights(face, dtype):
    torch.manual_seed(0)
    weight, matrix = fp8_weight(70, 200, dtype)
    set_input_scale(weight, torch.tensor(0.005))
    for count in (1, 20):
        x, bias = torch.randn(count, 200).to(dtype), torch.randn(70).to(dtype)
        residual = torch.randn(count, 70).to(dtype)
        values, scales = by_hand(x, FP8, torch.tensor([0.005]))
        assert (values.abs() == 448).any()
        expected = values * scales.double()[:, None] @ matrix.T + bias.double() + residual.double()
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
        result = linear.linear(x, weight, bias, residual=residual)
        assert result.dtype == dtype and error_of(result, expected) < tolerance
    gated, matrix = fp8_weight(64, 200, dtype, gated=True)
    set_input_scale(gated, torch.tensor([0.01]))
    values, scales = by_hand(x, FP8, torch.tensor([0.01]))
    gate, value = (values * scales.double()[:, None] @ matrix.T).chunk(2, dim=1)
    assert error_of(linear.gated_linear(x, gated, "silu"), functional.silu(gate) * value) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_fp8_products_take_what_is_rounded_already(face, dtype):
    torch.manual_seed(0)
    weight, matrix = fp8_weight(70, 1100, dtype)
    x, bias, residual = torch.randn(2, 3, 1100).to(dtype), torch.randn(70).to(dtype), torch.randn(2, 3, 70).to(dtype)
    rows = rounded.round_tokens(x, FP8)
    result = rounded.linear(rows, weight, bias, residual=residual)
    assert result.dtype == dtype and torch.equal(result, linear.linear(x, weight, bias, residual=residual))
    gated, _ = fp8_weight(64, 1100, dtype, gated=True)
    assert torch.equal(rounded.gated_linear(rows, gated, "gelu"), linear.gated_linear(x, gated, "gelu"))
    given = rounded.round_tokens(x, FP8, torch.tensor([0.005]))
    expected = (given.values.double() * given.scales.double()[..., None]) @ matrix.T
    assert error_of(rounded.linear(given, weight, out_dtype=torch.float32), expected) < 1e-5


@pytest.mark.parametrize("bits, group_size, gated", [(8, None, False), (8, None, True), (4, 128, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_int8_products_take_what_is_rounded_already(face, bits, group_size, gated, dtype):
    torch.manual_seed(0)
    matrix, bias = torch.randn(70, 1100).to(dtype), torch.randn(70).to(dtype)
    weight = quantization.new_weight(70, 1100, dtype, bits=bits, group_size=group_size, gated=gated)
    twin = quantization.new_weight(70, 1100, torch.float32, bits=bits, group_size=group_size)
    linear.fill(weight, matrix)
    linear.fill(twin, matrix.float())
    rows = rounded.round_tokens(torch.randn(3, 5, 1100), INT8)
    entries = twin.rows(torch.arange(70)).double()
    expected = (rows.values.double() * rows.scales.double()[..., None]) @ entries.T + bias.double()
    if gated:
        gate, value = expected.chunk(2, dim=-1)
        result, expected = rounded.gated_linear(rows, weight, "silu", bias), functional.silu(gate) * value
    else:
        result = rounded.linear(rows, weight, bias)
    assert result.dtype == dtype and error_of(result, expected) < (1e-5 if dtype == torch.float32 else 2e-3)
    assert (
        rounded.linear(Rounded(rows.values[:, :0], rows.scales[:, :0]), weight).shape == (3, 0, 70)
        if not gated
        else True
    )


@pytest.mark.triton
def test_launches_are_compiled_ahead():
    pytest.importorskip("triton")
    from vllm_kernels.triton.kernel import recorded

    x, weight = torch.randn(3, 1024).half(), torch.randn(1024).half()
    with use_face("triton"), recorded() as launches:
        for dtype in (FP8, INT8):
            for scale in (None, torch.ones(1)):
                rounded.round_tokens(x, dtype, scale)
                rounded.activation_and_mul(torch.randn(2, 6144).half(), "silu", dtype, scale)
                rounded.rms_norm(x, weight, 1e-6, dtype, scale)
                rounded.fused_add_rms_norm(x, x, weight, 1e-6, dtype, scale)
    assert len(launches) == 16
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)


def test_wrong_arguments_are_named():
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"dtype must be torch.float8_e4m3fn or torch.int8, got torch.uint8"):
        rounded.round_tokens(x, torch.uint8)
    with pytest.raises(ValueError, match=r"x must be floating point \[..., k\], got torch.int32"):
        rounded.round_tokens(x.int(), INT8)
    with pytest.raises(ValueError, match="scale must have one element"):
        rounded.round_tokens(x, INT8, torch.ones(2))
    with pytest.raises(ValueError, match=r"scale must be torch.float32"):
        rounded.round_tokens(x, INT8, torch.ones(1).half())
    with pytest.raises(ValueError, match=r"weight must have shape \[8\]"):
        rounded.rms_norm(x, weight[1:], 1e-6, INT8)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 8\]"):
        rounded.fused_add_rms_norm(x, x[:1], weight, 1e-6, INT8)
    with pytest.raises(ValueError, match="x must have an even last size"):
        rounded.activation_and_mul(x[:, 1:], "silu", INT8)
    with pytest.raises(ValueError, match="activation must be one of silu"):
        rounded.activation_and_mul(x, "relu", INT8)
    fp8, gated = new_weight(8, 8, torch.float32), new_weight(8, 8, torch.float32, gated=True)
    rows = rounded.round_tokens(x, FP8)
    with pytest.raises(ValueError, match=r"values must be torch.float8_e4m3fn"):
        rounded.linear(rounded.round_tokens(x, INT8), fp8)
    with pytest.raises(ValueError, match="weight must be of fp8 with a scale for each row, or quantised"):
        rounded.linear(rows, linear.new_weight(8, 8, torch.float32))
    with pytest.raises(ValueError, match="weight is gated"):
        rounded.linear(rows, gated)
    with pytest.raises(ValueError, match="weight is not gated"):
        rounded.gated_linear(rows, fp8, "silu")
    with pytest.raises(ValueError, match=r"values must have shape \[2, 8\]"):
        rounded.linear(Rounded(rows.values[:, 1:], rows.scales), fp8)
    with pytest.raises(ValueError, match=r"bias must have shape \[8\]"):
        rounded.linear(rows, fp8, torch.zeros(7))
    with pytest.raises(ValueError, match="out_dtype must be"):
        rounded.linear(rows, fp8, out_dtype=torch.float16)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale must be finite and above 0"):
            set_input_scale(fp8, torch.tensor(bad))
    with pytest.raises(ValueError, match="scale must have one element"):
        set_input_scale(fp8, torch.ones(2))
    with pytest.raises(ValueError, match="without blocks"):
        set_input_scale(new_weight(8, 128, torch.float32, block=128), torch.ones(1))
