import pytest
import torch

from vllm_kernels.backend import use_face
from vllm_kernels.cpu.linear import padded_rows
from vllm_kernels.ops.linear import linear

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24)], ids=str)
def test_projection_equals_the_float64_reference(dtype, with_bias, shape):
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(7, 24).to(dtype)
    bias = torch.randn(7).to(dtype) if with_bias else None
    with use_face("reference"):
        exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    # The bias may be added before or after the product is rounded.
    tolerance = 20 * ROUNDING[dtype]
    assert torch.allclose(linear(x, weight, bias).double(), exact, rtol=2 * ROUNDING[dtype], atol=tolerance)


def test_wrong_arguments_are_named():
    x, weight = torch.zeros(2, 8), torch.zeros(3, 8)
    with pytest.raises(ValueError, match=r"weight must be \[out_features, 8\]"):
        linear(x, weight[:, :4])
    with pytest.raises(ValueError, match="weight must have the dtype of x"):
        linear(x, weight.bfloat16())
    with pytest.raises(ValueError, match=r"bias must be \[3\]"):
        linear(x, weight, torch.zeros(2))


@pytest.mark.parametrize("rows", [1, 8, 9, 63, 65, 250, 257, 2049])
def test_rows_that_are_added_for_the_kernel_are_not_seen(rows: int) -> None:
    x, weight = torch.randn(rows, 24).bfloat16(), torch.randn(16, 24).bfloat16()
    result = linear(x, weight)
    assert result.shape == (rows, 16)
    assert torch.allclose(result.float(), x.float() @ weight.float().T, rtol=0.02, atol=0.1)


def test_sizes_of_steps_meet_few_kernels() -> None:
    sizes = {padded_rows(count) for count in range(1, 4097)}
    assert len(sizes) < 64
    assert all(count <= padded_rows(count) < 1.25 * count for count in range(33, 4097))
