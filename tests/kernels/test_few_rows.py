"""Products of few rows on a GPU: values, what is part of them, and where they end."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kernels.gates import GATES
from vllm_kernels.backend import use_face
from vllm_kernels.linear_weight import LinearWeight, RowNorm
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight

pytest.importorskip("triton")

from vllm_kernels.triton import few_rows, one_row
from vllm_kernels.triton.kernel import recorded

pytestmark = pytest.mark.triton
EPS = 1e-5
ROUNDING = {torch.float32: 1e-5, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


def filled(rows: torch.Tensor, *, gated: bool = False) -> LinearWeight:
    weight = new_weight(*rows.shape, rows.dtype, rows.device, gated=gated)
    fill(weight, rows)
    return weight


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def normed(x: torch.Tensor, norm: RowNorm | None) -> torch.Tensor:
    """In float64."""
    wide = x.double()
    if norm is None:
        return wide
    factors = norm.weight.double() + int(norm.unit_offset)
    return wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt() * factors


def close(result: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> bool:
    assert result.dtype == dtype
    return torch.allclose(result.double(), exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    num_rows=st.integers(1, 20),
    out_features=st.integers(1, 70),
    in_features=st.integers(1, 600),
    dtype=st.sampled_from(list(ROUNDING)),
    norm=st.sampled_from([None, False, True]),
    extras=st.sets(st.sampled_from(["bias", "residual"])),
    activation=st.none() | st.sampled_from(list(GATES)),
    seed=st.integers(0, 2**16),
)
@example(1, 70, 600, torch.float16, False, {"bias"}, "silu", 0)
@example(1, 70, 600, torch.float32, True, {"bias", "residual"}, None, 0)
@example(16, 33, 513, torch.float32, False, {"bias"}, "silu", 0)
@example(16, 64, 256, torch.float16, True, set(), "gelu", 0)
def test_any_shape_equals_float64(num_rows, out_features, in_features, dtype, norm, extras, activation, seed):
    torch.manual_seed(seed)
    x = random(num_rows, in_features, dtype=dtype)
    rows = random(out_features * (1 if activation is None else 2), in_features, dtype=dtype) / in_features**0.5
    bias = random(len(rows), dtype=dtype) if "bias" in extras else None
    before = None if norm is None else RowNorm(random(in_features, dtype=dtype), EPS, norm)
    exact = normed(x, before) @ rows.double().T
    if bias is not None:
        exact = exact + bias.double()
    with recorded() as launches:
        if activation is None:
            residual = random(num_rows, out_features, dtype=dtype) if "residual" in extras else None
            result = linear(x, filled(rows), bias, residual=residual, norm=before)
            exact = exact if residual is None else exact + residual.double()
        else:
            result = gated_linear(x, filled(rows, gated=True), activation, bias, norm=before)
            exact = GATES[activation](exact[:, :out_features]) * exact[:, out_features:]
    assert close(result, exact, dtype)
    names = [kernel.name for kernel, _ in launches]
    if num_rows == 1:
        assert names == ["one_row_kernel"]
    elif num_rows <= few_rows.MOST_ROWS:  # and nothing else, but the norm where its product could overflow
        assert names == ["norm_kernel"] * (before is not None and dtype == torch.float16) + ["few_rows_kernel"]
    else:
        assert not {"one_row_kernel", "few_rows_kernel"} & set(names)


def test_a_result_of_32_bits_is_not_rounded_to_16_on_the_way():
    torch.manual_seed(0)
    x, rows = random(3, 100, dtype=torch.float16), random(40, 100, dtype=torch.float16)
    result = linear(x, filled(rows), out_dtype=torch.float32)
    assert close(result, x.double() @ rows.double().T, torch.float32)


def test_a_norm_of_large_numbers_in_16_bits_does_not_overflow():
    factors, rows = torch.full((64,), 50.0, dtype=torch.float16), torch.eye(64, dtype=torch.float16)
    for num_rows in (1, 2):
        x = torch.full((num_rows, 64), 6e4, dtype=torch.float16)
        assert linear(x, filled(rows), norm=RowNorm(factors, EPS)).tolist() == [[50.0] * 64] * num_rows


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    torch.manual_seed(0)
    x, rows, norm = torch.randn(4, 50), torch.randn(30, 50), RowNorm(torch.randn(50), EPS)
    sound = linear(x, filled(rows), norm=norm)
    x[1, 7], x[3, 0] = float("nan"), float("inf")
    result = linear(x, filled(rows), norm=norm)
    assert torch.equal(result[::2], sound[::2]) and result[1::2].isnan().all()


def test_rows_that_do_not_lie_side_by_side_are_put_so():
    torch.manual_seed(0)
    x, rows, residual = torch.randn(50, 4).T, torch.randn(30, 50) / 7, torch.randn(30, 4).T
    norm, bias = RowNorm(torch.randn(100)[::2], EPS), torch.randn(60)[::2]
    exact = normed(x, norm) @ rows.double().T + bias.double() + residual.double()
    assert close(linear(x, filled(rows), bias, residual=residual, norm=norm), exact, torch.float32)


def test_no_rows_give_no_rows():
    assert linear(torch.empty(0, 50), filled(torch.randn(30, 50))).shape == (0, 30)


def test_what_is_launched_is_what_is_compiled_ahead():
    dtype = torch.float16
    weight, norm = filled(torch.ones(1024, 2048, dtype=dtype)), RowNorm(torch.ones(1024, dtype=dtype), EPS)
    with recorded() as launches:
        for num_rows in (1, 3):
            residual = torch.ones(num_rows, 1024, dtype=dtype)
            linear(torch.ones(num_rows, 2048, dtype=dtype), weight, residual=residual)
        gated_linear(residual[:1], filled(torch.ones(6144, 1024, dtype=dtype), gated=True), "silu", norm=norm)
    assert [kernel.name for kernel, _ in launches] == ["one_row_kernel", "few_rows_kernel", "one_row_kernel"]
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), configuration.label


@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("kernel", [one_row, few_rows])
def test_small_weights_are_read_by_many_programs_and_enough_is_under_way(kernel, gated):
    for power in range(10, 17):
        choice = kernel.TILES.rule(out=2**power, x_bits=16, gated=gated)
        programs = 2**power // choice["BLOCK_N"]
        assert programs >= (64 if power == 10 else 128)
        columns = choice["BLOCK_K"] * (choice["num_warps"] if kernel is few_rows else 1)
        of_turn = choice["BLOCK_N"] * (1 + gated) * columns * 2
        assert (choice["num_stages"] - 1) * of_turn >= 32 * 1024


def test_a_norm_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"norm\.weight"):
        linear(torch.ones(1, 50), filled(torch.ones(30, 50)), norm=RowNorm(torch.ones(49), EPS))
