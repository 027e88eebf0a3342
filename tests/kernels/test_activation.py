import pytest
import torch
from transformers.activations import ACT2FN

from vllm_kernels.backend import FACES, use_face
from vllm_kernels.ops import activation

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
GATED = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_pytorch_tanh"}
PLAIN = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", [*GATED, *PLAIN])
def test_activations_equal_the_float64_reference(name, dtype):
    torch.manual_seed(0)
    x = (4 * torch.randn(5, 3, 32)).to(dtype)
    before = x.clone()
    result = getattr(activation, name)(x)
    with use_face("reference"):
        exact = getattr(activation, name)(x.double())
    assert result.dtype == dtype
    assert torch.allclose(result.double(), exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", GATED)
def test_gated_activations_equal_those_of_transformers(face, name):
    torch.manual_seed(0)
    gate, value = torch.randn(2, 6, 16)
    with use_face(face):
        ours = getattr(activation, name)(torch.cat([gate, value], dim=-1))
    assert torch.allclose(ours, ACT2FN[GATED[name]](gate) * value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", PLAIN)
def test_plain_activations_equal_those_of_transformers(face, name):
    torch.manual_seed(0)
    x = 3 * torch.randn(6, 16)
    with use_face(face):
        ours = getattr(activation, name)(x)
    assert torch.allclose(ours, ACT2FN[PLAIN[name]](x), rtol=1e-6, atol=1e-6)


def test_an_odd_size_has_no_halves():
    with pytest.raises(ValueError, match="x must have an even last size"):
        activation.silu_and_mul(torch.zeros(2, 3))
