"""The native products: shapes at the edges of tiles and panels, every level, AMX emulated, and every batch."""

import pytest
import torch
from torch.nn import functional

from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight

EMULATED = ("linear",)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
GATES = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def filled(tensor: torch.Tensor, gated: bool = False):
    weight = new_weight(*tensor.shape, tensor.dtype, gated=gated)
    fill(weight, tensor)
    return weight


def close(result: torch.Tensor, exact: torch.Tensor, size: int) -> bool:
    """Within the rounding of the result and of ``size`` sums in fp32 of products of unit variance."""
    rounding = ROUNDING[result.dtype]
    return torch.allclose(result.double(), exact, rtol=2 * rounding, atol=1e-6 * size**0.5 * 4 + rounding * 1e-2)


def problem(rows: int, columns: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * 7919 + columns * 31 + size)
    return torch.randn(rows, size).to(dtype), torch.randn(columns, size).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_products_at_the_edges_of_tiles_and_panels(kernels, dtype):
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 15, 16, 17, 24, 31, 33, 48, 65):
        for columns, size in ((1, 1), (17, 5), (64, 32), (65, 33), (130, 70)):
            x, w = problem(rows, columns, size, dtype)
            result = linear(x, filled(w), out_dtype=torch.float32)
            assert close(result, x.double() @ w.double().T, size), (rows, columns, size)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(9, 2500), (40, 4200), (270, 40), (300, 512)])
def test_products_of_several_blocks(kernels, dtype, rows, size):
    x, w = problem(rows, 70, size, dtype)
    assert close(linear(x, filled(w), out_dtype=torch.float32), x.double() @ w.double().T, size)


def test_rows_of_bf16_may_begin_between_words_of_4_bytes(kernels):
    x, w = problem(5, 70, 64, torch.bfloat16)
    begins_later = functional.pad(x, (1, 1))[:, 1:65]
    assert begins_later.data_ptr() % 4 == 2
    assert close(linear(begins_later, filled(w)), x.double() @ w.double().T, 64)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_epilogues(kernels, dtype, rows):
    x, w = problem(rows, 150, 96, dtype)
    bias, residual = torch.randn(150).to(dtype), torch.randn(rows, 150).to(dtype)
    exact = x.double() @ w.double().T + bias.double()
    assert close(linear(x, filled(w), bias, residual=residual), exact + residual.double(), 96)
    for name, activation in GATES.items():
        gated = activation(exact[:, :75]) * exact[:, 75:]
        result = gated_linear(x, filled(w, gated=True), name, bias)
        # The gate multiplies the error of the value.
        assert torch.allclose(result.double(), gated, rtol=4 * ROUNDING[dtype], atol=2e-4), name


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("rows", [1, 19, 290])
def test_whole_panels_to_which_nothing_is_added(kernels, dtype, rows):
    x, w = problem(rows, 192, 256, dtype)
    x = x / 8
    exact = x.double() @ w.double().T
    assert close(linear(x, filled(w)), exact, 256)
    for name, activation in GATES.items():
        gated = activation(exact[:, :96]) * exact[:, 96:]
        result = gated_linear(x, filled(w, gated=True), name)
        assert torch.allclose(result.double(), gated, rtol=4 * ROUNDING[dtype], atol=2e-4), name


def test_a_gate_is_rounded_once_but_for_an_error_far_below_that(kernels):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite() & (x.abs() < 80) & (x.abs() > 1e-30)]
    rows = torch.zeros(len(x), 32, dtype=torch.bfloat16)
    rows[:, 0], rows[:, 1] = x, 1.0
    w = torch.zeros(64, 32, dtype=torch.bfloat16)
    w[:32, 0] = w[32:, 1] = 1.0  # silu(x) * 1
    result, exact = gated_linear(rows, filled(w, gated=True), "silu")[:, 5], functional.silu(x.double())
    assert ((result.double() - exact).abs() <= exact.abs() * 2**-8 * (1 + 1e-4)).all()
    assert (result != exact.to(torch.bfloat16)).float().mean() < 3e-3


def test_large_results_have_the_bits_of_small_ones(kernels):
    # What exceeds the caches is written past them, if rows are whole lines of memory.
    rows = 700
    x, w = problem(rows, 3200, 64, torch.bfloat16)
    weight, gated = filled(w), filled(w, gated=True)
    residual = torch.randn(rows, 3200).to(torch.bfloat16)
    large, largest = linear(x, weight, residual=residual), gated_linear(x.repeat(2, 1), gated, "silu")
    for first in range(0, rows, 100):
        part = x[first : first + 100]
        assert torch.equal(large[first : first + 100], linear(part, weight, residual=residual[first : first + 100]))
        assert torch.equal(largest[first : first + 100], gated_linear(part, gated, "silu"))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_rows_may_lie_anywhere(kernels, dtype):
    x, w = problem(21, 70, 64, dtype)
    weight, bias = filled(w), torch.zeros(70, dtype=dtype)
    expected = linear(x, weight, bias)
    for stride in (65, 72, 256):
        wide = torch.full((21, stride), float("nan"), dtype=dtype)
        wide[:, :64] = x
        residual = torch.zeros(70, 21, dtype=dtype).T
        assert torch.equal(linear(wide[:, :64], weight, bias, residual=residual), expected)
    assert torch.equal(linear(x.T.contiguous().T, weight, bias), expected)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_what_is_not_there_is_not_read(kernels, dtype):
    # Columns are padded to panels: infinities of x must not meet zeros of theirs in a result.
    x, w = problem(20, 3, 33, dtype)
    x[3, 2] = float("inf")
    result = linear(x, filled(w))
    assert torch.equal(result.isfinite().all(1), torch.arange(20) != 3)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("invariant", [False, True])
def test_a_row_is_the_same_in_every_batch(kernels, dtype, invariant):
    x, w = problem(300, 130, 2100, dtype)
    weight = filled(w)
    # Vectors and tiles round differently; each alone is the same for all sizes.
    smallest = 3 if kernels.startswith("amx") and not invariant else 1
    before = torch.get_num_threads()
    try:
        with use_batch_invariance(invariant):
            torch.set_num_threads(1)
            whole = linear(x, weight, out_dtype=torch.float32)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for first, count in ((0, 1), (7, 6), (10, 13), (3, 16), (30, 100), (100, 200)):
                    if count >= smallest:
                        part = linear(x[first : first + count], weight, out_dtype=torch.float32)
                        assert torch.equal(part, whole[first : first + count]), (threads, first, count)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("rows", [768, 1008])
def test_many_rows_are_the_same_whichever_thread_takes_them(kernels, dtype, rows):
    x, w = problem(rows, 70, 130, dtype)
    weight, residual = filled(w), torch.randn(rows, 70).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = torch.cat(
            [linear(x[row : row + 48], weight, residual=residual[row : row + 48]) for row in range(0, rows, 48)]
        )
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(linear(x, weight, residual=residual), whole), threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_weights_come_from_any_type_and_give_their_rows_back(kernels, dtype, gated):
    torch.manual_seed(0)
    for source in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        rows = torch.randn(134, 45, dtype=torch.float64).to(source)
        weight = new_weight(134, 45, dtype, gated=gated)
        for start, end in ((60, 134), (0, 7), (7, 60)):
            fill(weight, rows[start:end].t().contiguous().t() if start else rows[start:end], start)
        ids = torch.randint(0, 134, (200,))
        # Two roundings where the kernels do not read the type.
        assert torch.equal(weight.rows(ids), rows.to(dtype)[ids])
        assert weight.rows(ids[:0]).shape == (0, 45)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_special_values_of_weights_survive(kernels, dtype):
    values = torch.tensor([[0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 65504.0, 3e38]])
    weight = new_weight(1, 8, dtype)
    fill(weight, values)
    result, expected = weight.rows(torch.tensor([0])), values.to(dtype)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(1.0), expected.nan_to_num(1.0))


def test_no_rows_make_no_result(kernels):
    weight = filled(torch.ones(4, 8))
    assert linear(torch.ones(0, 8), weight).shape == (0, 4)


def test_other_types_are_served_by_torch():
    x = torch.randn(3, 8, dtype=torch.float64)
    w = torch.randn(5, 8, dtype=torch.float64)
    with use_face("cpu"):
        assert torch.allclose(linear(x, filled(w)), x @ w.T)
