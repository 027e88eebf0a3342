"""Products of few rows by weights of 4 bits on a GPU: values, what is part of them, and where they end."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kernels.gates import GATES
from vllm_kernels import batch_invariance
from vllm_kernels.backend import use_face
from vllm_kernels.linear_weight import LinearWeight, RowNorm
from vllm_kernels.ops.linear import gated_linear, linear
from vllm_kernels.ops.quantization import fill_quantized, new_weight

pytest.importorskip("triton")

from vllm_kernels.triton.few_rows import MOST_ROWS
from vllm_kernels.triton.kernel import recorded

pytestmark = pytest.mark.triton
EPS = 1e-5
KERNEL = "quantized_few_rows_kernel"


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


def random_weight(
    out_features: int, in_features: int, group: int | None, dtype: torch.dtype, *, gated: bool = False
) -> tuple[LinearWeight, torch.Tensor]:
    """A weight of random entries, scales and zeros, and the matrix that it stands for, in float64."""
    weight = new_weight(out_features, in_features, dtype, bits=4, group_size=group, activation_bits=None, gated=gated)
    q = torch.randint(0, 16, (out_features, in_features), dtype=torch.uint8)
    zeros = torch.randint(0, 16, (out_features, weight.groups), dtype=torch.uint8)
    scales = ((torch.rand(out_features, weight.groups) + 0.1) / 4 / in_features**0.5).half()
    fill_quantized(weight, q, scales, zeros)
    zero, scale = (
        table.double().repeat_interleave(group or in_features, 1)[:, :in_features] for table in (zeros, scales)
    )
    return weight, (q.double() - zero) * scale


def normed(x: torch.Tensor, norm: RowNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in float64, and the factors that they are divided by after the product."""
    wide = x.double()
    if norm is None:
        return wide, wide.new_ones(len(x), 1)
    factors = norm.weight.double() + int(norm.unit_offset)
    return wide * factors, (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    num_rows=st.integers(1, 20),
    out_features=st.integers(1, 70),
    in_features=st.integers(1, 700),
    group=st.sampled_from([None, 8, 24, 32, 64, 128, 136]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    norm=st.sampled_from([None, False, True]),
    extras=st.sets(st.sampled_from(["bias", "residual"])),
    activation=st.none() | st.sampled_from(list(GATES)),
    seed=st.integers(0, 2**16),
)
@example(16, 33, 640, 128, torch.float16, None, {"bias"}, "silu", 0)
@example(1, 70, 700, 64, torch.float32, True, {"bias", "residual"}, None, 0)
@example(5, 64, 192, 32, torch.float32, False, set(), "gelu", 0)
@example(3, 20, 100, 24, torch.float16, False, {"residual"}, None, 0)
@example(3, 20, 137, None, torch.float32, None, {"residual"}, None, 0)
def test_any_shape_equals_float64(num_rows, out_features, in_features, group, dtype, norm, extras, activation, seed):
    torch.manual_seed(seed)
    x = torch.randn(num_rows, in_features).to(dtype)
    gated = activation is not None
    weight, matrix = random_weight(out_features * (1 + gated), in_features, group, dtype, gated=gated)
    bias = torch.randn(len(matrix)).to(dtype) if "bias" in extras else None
    before = None if norm is None else RowNorm(torch.randn(in_features).to(dtype), EPS, norm)
    rows, divisor = normed(x, before)
    exact = rows @ matrix.T / divisor
    # Zeros far from the middle make sums that nearly cancel: errors are measured by what is summed.
    summed = rows.abs() @ matrix.abs().T / divisor
    if bias is not None:
        exact = exact + bias.double()
    with recorded() as launches:
        if activation is None:
            residual = torch.randn(num_rows, out_features).to(dtype) if "residual" in extras else None
            result = linear(x, weight, bias, residual=residual, norm=before)
            exact = exact if residual is None else exact + residual.double()
        else:
            result = gated_linear(x, weight, activation, bias, norm=before)
            gate, value = exact[:, :out_features], exact[:, out_features:]
            summed = summed[:, :out_features] * (1 + value.abs()) + summed[:, out_features:] * (1 + gate.abs())
            exact = GATES[activation](gate) * value
    assert result.dtype == dtype
    step = 1e-5 if dtype == torch.float32 else 2e-3
    assert ((result.double() - exact).abs() <= step * (summed + exact.abs() + 1)).all()
    names = [kernel.name for kernel, _ in launches]
    if num_rows <= MOST_ROWS:  # and nothing else, but the norm where its product could overflow
        assert names == ["norm_kernel"] * (before is not None and dtype == torch.float16) + [KERNEL]
    else:
        assert KERNEL not in names


def test_a_result_of_32_bits_is_not_rounded_to_16_on_the_way():
    torch.manual_seed(0)
    x = torch.randn(3, 640).half()
    weight, matrix = random_weight(40, 640, 128, torch.float16)
    error = linear(x, weight, out_dtype=torch.float32).double() - x.double() @ matrix.T
    assert (error.abs() <= 1e-6 * (x.double().abs() @ matrix.abs().T)).all()


@pytest.mark.parametrize("with_norm", [False, True])
def test_columns_in_the_order_of_activation_meet_their_own(with_norm):
    torch.manual_seed(0)
    x = torch.randn(3, 256)
    weight, matrix = random_weight(40, 256, 64, torch.float32)
    weight.order = torch.randperm(256)
    norm = RowNorm(torch.randn(256), EPS) if with_norm else None
    rows, divisor = normed(x, norm)
    with recorded() as launches:
        result = linear(x, weight, norm=norm)
    assert launches[-1][0].name == KERNEL
    torch.testing.assert_close(result.double(), rows[:, weight.order] @ matrix.T / divisor, rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_lie_side_by_side_are_put_so():
    torch.manual_seed(0)
    x, residual, bias = torch.randn(96, 4).T, torch.randn(30, 4).T, torch.randn(60)[::2]
    weight, matrix = random_weight(30, 96, 32, torch.float32)
    norm = RowNorm(torch.randn(192)[::2], EPS)
    rows, divisor = normed(x, norm)
    exact = rows @ matrix.T / divisor + bias.double() + residual.double()
    torch.testing.assert_close(
        linear(x, weight, bias, residual=residual, norm=norm).double(), exact, rtol=1e-4, atol=1e-4
    )


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    torch.manual_seed(0)
    x = torch.randn(4, 96)
    weight, _ = random_weight(30, 96, 32, torch.float32)
    sound = linear(x, weight)
    x[1, 7], x[3, 0] = float("nan"), float("inf")
    result = linear(x, weight)
    assert torch.equal(result[::2], sound[::2]) and not result[1::2].isfinite().any()


def test_where_a_result_must_be_the_same_in_any_batch_few_rows_are_multiplied_as_many_are(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(batch_invariance, "enabled", lambda: True)
    x = torch.randn(20, 96)
    weight, _ = random_weight(30, 96, 32, torch.float32)
    assert torch.equal(linear(x[:3], weight), linear(x, weight)[:3])


def test_no_rows_give_no_rows():
    weight, _ = random_weight(30, 96, 32, torch.float32)
    assert linear(torch.empty(0, 96), weight).shape == (0, 30)


def test_what_is_launched_is_what_is_compiled_ahead():
    weight, _ = random_weight(1024, 2048, 128, torch.float16)
    gated, _ = random_weight(6144, 1024, 64, torch.float16, gated=True)
    with recorded() as launches:
        linear(torch.ones(3, 2048, dtype=torch.float16), weight, residual=torch.ones(3, 1024, dtype=torch.float16))
        gated_linear(torch.ones(1, 1024, dtype=torch.float16), gated, "silu")
    assert [kernel.name for kernel, _ in launches] == [KERNEL] * 2
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), configuration.label
