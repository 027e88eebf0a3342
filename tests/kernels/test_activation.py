import math

import pytest
import torch
from transformers import GptOssConfig
from transformers.activations import ACT2FN
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from vllm_kernels.backend import use_face
from vllm_kernels.ops import activation

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
GATED = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_pytorch_tanh"}
PLAIN = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", [*GATED, "swigluoai_and_mul", *PLAIN])
def test_activations_equal_the_float64_reference(name, dtype, level):
    torch.manual_seed(0)
    x = (4 * torch.randn(5, 3, 42)).to(dtype)
    before = x.clone()
    result = getattr(activation, name)(x)
    with use_face("reference"):
        exact = getattr(activation, name)(x.double())
    assert result.dtype == dtype
    assert torch.allclose(result.double(), exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", GATED)
def test_gated_activations_equal_those_of_transformers(face, name):
    torch.manual_seed(0)
    gate, value = torch.randn(2, 6, 16)
    ours = getattr(activation, name)(torch.cat([gate, value], dim=-1))
    assert torch.allclose(ours, ACT2FN[GATED[name]](gate) * value, rtol=1e-6, atol=1e-6)


def test_the_clamped_gate_equals_the_one_of_transformers(face):
    torch.manual_seed(0)
    experts = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=16, num_local_experts=1))
    gate, value = 6 * torch.randn(2, 40, 16)
    gate[0, 0] = value[1, 1] = torch.nan
    expected = experts._apply_gate(torch.stack([gate, value], dim=-1).flatten(1))
    ours = activation.swigluoai_and_mul(torch.cat([gate, value], dim=-1))
    assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert ours.isnan().sum() == 2


@pytest.mark.parametrize("name", PLAIN)
def test_plain_activations_equal_those_of_transformers(face, name):
    torch.manual_seed(0)
    x = 3 * torch.randn(6, 16)
    ours = getattr(activation, name)(x)
    assert torch.allclose(ours, ACT2FN[PLAIN[name]](x), rtol=1e-6, atol=1e-6)


# Largest error of a result, in units of 2^-23 of itself: of inputs from -3 to 3, and from -8 to 13.
UNITS = {"silu": (1.5, 1.5), "gelu": (3.5, 3.5), "gelu_tanh": (6, 50), "relu": (0, 0)}


@pytest.mark.parametrize("name", UNITS)
def test_small_results_have_as_many_digits_as_large_ones(name, level):
    # silu stands alone as the gate of a value of one.
    x = torch.cat([torch.linspace(-13, 13, 20001), torch.logspace(-30, 0, 999), -torch.logspace(-30, 0, 999)])
    own = (lambda z: activation.silu_and_mul(torch.cat([z, torch.ones_like(z)]))) if name == "silu" else None
    function = own or getattr(activation, name)
    with use_face("reference"):
        exact = function(x.double())
    if name == "gelu":  # 1 + erf loses the digits of the tail even in fp64
        exact = x.double() * torch.special.erfc(x.double() / -math.sqrt(2)) / 2
    if name == "gelu_tanh":  # and so does 1 + tanh
        wide = x.double()
        exact = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    error = (function(x).double() - exact).abs() / exact.abs().clamp_min(1e-37) * 2**23
    near = x.abs() <= 3
    assert error[near].max() <= UNITS[name][0]
    assert error[~near & (x > -8)].max() <= UNITS[name][1]


@pytest.mark.parametrize("name", PLAIN)
def test_nan_stays_nan_and_large_numbers_are_kept_or_vanish(name, face):
    x = torch.tensor([torch.nan, 0.0, 1e38, -1e38] * 10)
    result = getattr(activation, name)(x)
    assert torch.equal(torch.nan_to_num(result, nan=5.0), torch.tensor([5.0, 0, 1e38, 0] * 10))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_large_tensor_has_the_bits_of_its_rows(dtype, level, num_threads):
    torch.manual_seed(0)
    x = torch.randn(40, 9000).to(dtype)
    for function in (activation.silu_and_mul, activation.gelu_tanh):
        assert torch.equal(function(x), torch.cat([function(row) for row in x.split(1)]))


def test_parts_of_a_wider_tensor_are_treated_alike(face):
    torch.manual_seed(0)
    x = torch.randn(6, 100)
    for part in (x[:, 10:60], x[:, ::2], x.t()):
        for function in (activation.silu_and_mul, activation.gelu):
            assert torch.allclose(function(part), function(part.contiguous()), rtol=1e-6, atol=1e-6)


def test_nothing_gives_nothing(face):
    assert activation.relu(torch.zeros(0, 4)).shape == (0, 4)
    assert activation.silu_and_mul(torch.zeros(0, 4)).shape == (0, 2)
    assert activation.silu_and_mul(torch.zeros(3, 0)).shape == (3, 0)


def test_an_odd_size_has_no_halves():
    with pytest.raises(ValueError, match="x must have an even last size"):
        activation.silu_and_mul(torch.zeros(2, 3))
