import pytest
import torch
from torch.nn import functional

from vllm_kernels.backend import use_face
from vllm_kernels.eager.linear import padded_rows
from vllm_kernels.ops import quantization
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight
from vllm_kernels.ops.linear import rows as rows_of

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
FACES = ["reference", "eager", "cpu"]
GATES = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def filled(tensor: torch.Tensor, gated: bool = False):
    weight = new_weight(*tensor.shape, tensor.dtype, gated=gated)
    fill(weight, tensor)
    return weight


def close(result: torch.Tensor, exact: torch.Tensor) -> bool:
    rounding = ROUNDING[result.dtype]
    return torch.allclose(result.double(), exact, rtol=4 * rounding, atol=20 * rounding)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("extras", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24)], ids=str)
def test_projection_equals_float64(face, dtype, extras, shape):
    torch.manual_seed(0)
    x, rows = torch.randn(shape).to(dtype), torch.randn(7, 24).to(dtype)
    bias = torch.randn(7).to(dtype) if "bias" in extras else None
    residual = torch.randn(*shape[:-1], 7).to(dtype) if "residual" in extras else None
    exact = x.double() @ rows.double().T
    for extra in (bias, residual):
        exact = exact if extra is None else exact + extra.double()
    with use_face(face):
        assert close(linear(x, filled(rows), bias, residual=residual), exact)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_projection_equals_float64(face, dtype, activation, with_bias):
    torch.manual_seed(0)
    x, rows = torch.randn(5, 24).to(dtype), (torch.randn(38, 24) / 5).to(dtype)
    bias = torch.randn(38).to(dtype) if with_bias else None
    both = x.double() @ rows.double().T
    if bias is not None:
        both = both + bias.double()
    with use_face(face):
        result = gated_linear(x, filled(rows, gated=True), activation, bias)
    assert close(result, GATES[activation](both[:, :19]) * both[:, 19:])


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_in_fp32(face, dtype):
    torch.manual_seed(0)
    x, rows = torch.randn(3, 64).to(dtype), torch.randn(48, 64).to(dtype)
    with use_face(face):
        result = linear(x, filled(rows), out_dtype=torch.float32)
    assert result.dtype == torch.float32
    # The eager face rounds to the type of x first.
    tolerance = ROUNDING[dtype] if face == "eager" else 1e-5
    assert torch.allclose(result.double(), x.double() @ rows.double().T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("gated", [False, True])
def test_a_weight_is_filled_piece_by_piece_and_gives_its_rows_back(face, gated):
    torch.manual_seed(0)
    rows = torch.randn(70, 24).bfloat16()
    with use_face(face):
        weight = new_weight(70, 24, torch.bfloat16, gated=gated)
        for start, end in ((40, 70), (0, 13), (13, 40)):
            # As fp32, and transposed in memory, as some checkpoints have it.
            fill(weight, rows[start:end].float().t().contiguous().t(), start)
        ids = torch.tensor([69, 0, 13, 13, 34, 35])
        assert torch.equal(weight.rows(ids), rows[ids])
        assert weight.nbytes >= rows.nbytes


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("bad", [-1, 70, 2**40])
def test_a_row_that_is_not_there_is_refused(bits, bad):
    sizes = (70, 24, torch.float32)
    weight = new_weight(*sizes) if bits is None else quantization.new_weight(*sizes, bits=bits)
    fill(weight, torch.randn(70, 24))
    assert rows_of(weight, torch.tensor([69, 0])).shape == (2, 24)
    assert rows_of(weight, torch.tensor([], dtype=torch.int64)).shape == (0, 24)
    with pytest.raises(IndexError, match="an id is outside of the 70 rows"):
        rows_of(weight, torch.tensor([3, bad]))


def test_wrong_arguments_are_named():
    x, weight = torch.zeros(2, 8), filled(torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"x must be \[..., 8\]"):
        linear(x[:, :4], weight)
    with pytest.raises(ValueError, match=r"x must be torch.float32"):
        linear(x.bfloat16(), weight)
    with pytest.raises(ValueError, match=r"bias must have shape \[4\]"):
        linear(x, weight, torch.zeros(2))
    with pytest.raises(ValueError, match=r"bias must be torch.float32"):
        linear(x, weight, torch.zeros(4).bfloat16())
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 4\]"):
        linear(x, weight, residual=torch.zeros(2, 8))
    with pytest.raises(ValueError, match="out_dtype must be"):
        linear(x, weight, out_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="weight is not gated"):
        gated_linear(x, weight, "silu")
    gated = filled(torch.zeros(4, 8), gated=True)
    with pytest.raises(ValueError, match="weight is gated"):
        linear(x, gated)
    with pytest.raises(ValueError, match="activation must be one of silu, gelu, gelu_tanh"):
        gated_linear(x, gated, "relu")
    with pytest.raises(ValueError, match="outside of the weight's 4"):
        fill(weight, torch.zeros(3, 8), 2)
    with pytest.raises(ValueError, match="in_features must be at least 1"):
        new_weight(3, 0, torch.float32)
    with pytest.raises(ValueError, match="out_features of a gated weight must be even"):
        new_weight(3, 8, torch.float32, gated=True)
    with pytest.raises(ValueError, match="dtype must be floating point"):
        new_weight(3, 8, torch.int8)


@pytest.mark.parametrize("rows", [1, 8, 9, 63, 65, 250, 257, 2049])
def test_rows_that_are_added_for_the_kernel_are_not_seen(rows: int) -> None:
    x, weight = torch.randn(rows, 24).bfloat16(), torch.randn(16, 24).bfloat16()
    with use_face("eager"):
        result = linear(x, filled(weight))
    assert result.shape == (rows, 16)
    assert torch.allclose(result.float(), x.float() @ weight.float().T, rtol=0.02, atol=0.1)


def test_sizes_of_steps_meet_few_kernels() -> None:
    sizes = {padded_rows(count) for count in range(1, 4097)}
    assert len(sizes) < 64
    assert all(count <= padded_rows(count) < 1.25 * count for count in range(33, 4097))
