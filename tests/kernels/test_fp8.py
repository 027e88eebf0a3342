import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.linear_weight import RowNorm
from vllm_kernels.ops.fp8 import fill_fp8, new_weight, set_input_scale
from vllm_kernels.ops.linear import fill, gated_linear, linear
from vllm_kernels.ops.linear import new_weight as new_plain_weight
from vllm_kernels.ops.norm import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-6}


def to_fp8(units: torch.Tensor) -> torch.Tensor:
    """Nearest number of e4m3 by a list of them all, ties to the even one. Float64 as well."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    distance = (units.abs().double().unsqueeze(-1) - numbers).abs()
    distance *= 1 + torch.arange(127).double() % 2 * 1e-12  # further than fp32 has digits for, but for ties
    return numbers[distance.argmin(-1)] * units.sign()


def rounded(x: torch.Tensor, block: int | None) -> torch.Tensor:
    """What x [n, k] is after rounding with a scale for each row and `block` columns: float64."""
    result = torch.empty(x.shape, dtype=torch.float64)
    for begin in range(0, x.shape[1], block or x.shape[1]):
        part = x[:, begin : begin + (block or x.shape[1])].float()
        scale = part.abs().amax(1, keepdim=True) / torch.tensor(448.0)
        units = torch.where(scale > 0, part / scale.clamp(min=1e-38), 0.0)
        result[:, begin : begin + part.shape[1]] = to_fp8(units) * scale
    return result


def random_weight(out_features: int, in_features: int, dtype: torch.dtype, block: int | None, gated: bool = False):
    """A weight from a checkpoint, and float64 of what it stands for."""
    weight = new_weight(out_features, in_features, dtype, block=block, gated=gated)
    entries = torch.randn(out_features, in_features).to(torch.float8_e4m3fn)
    if block is None:
        scales = torch.rand(out_features) + 0.1
        matrix = entries.double() * scales[:, None].double()
    else:
        scales = torch.rand(-(-out_features // block), in_features // block) + 0.1
        wide = scales.repeat_interleave(block, 0)[:out_features].repeat_interleave(block, 1)
        matrix = entries.double() * wide.double()
    fill_fp8(weight, entries, scales)
    return weight, matrix


def error_of(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_products_equal_float64_of_the_rounded_activations(face, block, dtype):
    torch.manual_seed(0)
    weight, matrix = random_weight(200, 384, dtype, block)
    for count in (1, 20, 70):
        x, bias, residual = torch.randn(count, 384).to(dtype), torch.randn(200).to(dtype), torch.randn(count, 200)
        expected = rounded(x, block) @ matrix.T + bias.double() + residual.to(dtype).double()
        result = linear(x, weight, bias, residual=residual.to(dtype))
        assert result.dtype == dtype and error_of(result, expected) < TOLERANCE[dtype]


@settings(max_examples=5, deadline=None)
@example(count=16, out_features=72, in_features=128, seed=32)  # has ties
@given(
    count=st.integers(1, 70),
    out_features=st.integers(1, 150),
    in_features=st.integers(1, 300),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("served", ["reference", "triton"])
def test_any_shape_equals_float64(served, count, out_features, in_features, seed):
    torch.manual_seed(seed)
    with use_face(served):
        weight, matrix = random_weight(out_features, in_features, torch.float32, None)
        x = torch.randn(count, in_features)
        assert error_of(linear(x, weight), rounded(x, None) @ matrix.T) < 1e-5
        gated, matrix = random_weight(2 * out_features, in_features, torch.float32, None, gated=True)
        bias = torch.randn(2 * out_features)
        gate, value = (rounded(x, None) @ matrix.T + bias.double()).chunk(2, dim=1)
        expected = torch.nn.functional.silu(gate) * value
        assert error_of(gated_linear(x, gated, "silu", bias), expected) < 1e-5


@pytest.mark.parametrize("block", [None, 128])
def test_columns_in_parts_and_gates_equal_float64(face, block):
    torch.manual_seed(0)
    weight, matrix = random_weight(128, 2048, torch.float32, block, gated=True)
    x = torch.randn(5, 2048) / 40
    gate, value = (rounded(x, block) @ matrix.T).chunk(2, dim=1)
    assert error_of(gated_linear(x, weight, activation="silu"), torch.nn.functional.silu(gate) * value) < 1e-5


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_norm_before_the_product_gives_the_same_bits_as_one_apart(face, block, offset, dtype):
    torch.manual_seed(0)
    x, residual = torch.randn(6, 256).to(dtype), torch.randn(6, 96).to(dtype)
    norm = RowNorm((torch.rand(256) + 0.5).to(dtype), 1e-6, unit_offset=offset)
    apart = rms_norm(x, norm.weight, norm.eps, unit_offset=offset)
    weight, _ = random_weight(96, 256, dtype, block)
    assert torch.equal(linear(x, weight, residual=residual, norm=norm), linear(apart, weight, residual=residual))
    gated, _ = random_weight(192, 256, dtype, block, gated=True)
    assert torch.equal(
        gated_linear(x, gated, activation="silu", norm=norm), gated_linear(apart, gated, activation="silu")
    )
    if block is None:
        for each in (weight, gated):
            set_input_scale(each, torch.tensor([0.01]))
        assert torch.equal(linear(x, weight, norm=norm), linear(apart, weight))


@pytest.mark.parametrize("block", [None, 128])
def test_floats_are_rounded_to_the_nearest(face, block):
    torch.manual_seed(0)
    rows = torch.randn(300, 256) * torch.logspace(-3, 3, 300)[:, None]
    rows[7] = 0
    weight = new_weight(300, 256, torch.float32, block=block)
    for start, end in ((0, 128), (128, 300)):
        fill(weight, rows[start:end], start)
    expected = rounded(rows, None)
    if block:
        expected = torch.empty(300, 256, dtype=torch.float64)
        for i in range(0, 300, 128):
            for j in (0, 128):
                part = rows[i : i + 128, j : j + 128]
                expected[i : i + 128, j : j + 128] = rounded(part.reshape(1, -1), None).view(part.shape)
    assert torch.allclose(weight.rows(torch.arange(300)).double(), expected, rtol=1e-6, atol=0)
    assert weight.nbytes == 300 * 256 + 4 * (300 if block is None else 3 * 2)


def test_one_scale_for_the_whole_tensor(face):
    weight = new_weight(5, 8, torch.float32)
    fill_fp8(weight, torch.ones(5, 8).to(torch.float8_e4m3fn), torch.tensor([0.25]))
    assert torch.equal(weight.rows(torch.tensor([4, 0])), torch.full((2, 8), 0.25))


@pytest.mark.parametrize("block", [None, 128])
def test_a_row_that_is_no_number_stays_alone(face, block):
    torch.manual_seed(0)
    weight, _ = random_weight(64, 256, torch.float32, block)
    x = torch.randn(4, 256)
    x[3] = 0
    clean = linear(x, weight)
    assert not clean[3].any()
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1, 200] = bad
        result = linear(broken, weight)
        assert result[1].isnan().all() and torch.equal(result[[0, 2, 3]], clean[[0, 2, 3]])
    assert linear(x[:0], weight).shape == (0, 64)


@pytest.mark.triton
@pytest.mark.parametrize("block", [None, 128])
def test_a_row_does_not_depend_on_the_batch_where_asked_to(block):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    with use_batch_invariance(True), use_face("triton"):
        weight, _ = random_weight(64, 1024, torch.float32, block)
        x = torch.randn(40, 1024)
        together = linear(x, weight)
        assert all(torch.equal(linear(x[i : i + 1], weight), together[i : i + 1]) for i in (0, 17, 39))


@pytest.mark.triton
def test_launches_are_compiled_ahead():
    pytest.importorskip("triton")
    from vllm_kernels.triton.kernel import recorded

    torch.manual_seed(0)
    with use_face("triton"), recorded() as launches:
        for rows, block in ((3, None), (32, None), (3, 128)):
            weight, _ = random_weight(1024, 2048, torch.float16, block)
            linear(torch.randn(rows, 2048).half(), weight, residual=torch.randn(rows, 1024).half())
    in_parts = ["round_rows_kernel", "fp8_product_kernel", "add_parts_kernel"]
    assert [kernel.name for kernel, _ in launches] == ["round_rows_kernel", "few_rows_kernel", *in_parts * 2]
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="block must be 128 or None, got 64"):
        new_weight(8, 64, torch.float32, block=64)
    with pytest.raises(ValueError, match="in_features must be a multiple of block=128, got 64"):
        new_weight(8, 64, torch.float32, block=128)
    with pytest.raises(ValueError, match="dtype must be floating point"):
        new_weight(8, 64, torch.int8)
    weight, entries = new_weight(8, 64, torch.float32), torch.zeros(8, 64).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="weight must be one of fp8"):
        fill_fp8(new_plain_weight(8, 64, torch.float32), entries, torch.ones(8))
    with pytest.raises(ValueError, match=r"entries must be torch.float8_e4m3fn"):
        fill_fp8(weight, entries.float(), torch.ones(8))
    with pytest.raises(ValueError, match=r"scales must have shape \[8\]"):
        fill_fp8(weight, entries, torch.ones(7))
    with pytest.raises(ValueError, match="outside of the weight's 8"):
        fill_fp8(weight, entries, torch.ones(8), 1)
    blocks = new_weight(300, 128, torch.float32, block=128)
    rows = torch.zeros(100, 128)
    for store in (
        lambda: fill(blocks, rows, 50),
        lambda: fill_fp8(blocks, rows.to(entries.dtype), torch.ones(1, 1), 50),
    ):
        with pytest.raises(ValueError, match="start must be a multiple of block=128, got 50"):
            store()
