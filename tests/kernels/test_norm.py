import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vllm_kernels.backend import use_face
from vllm_kernels.ops.norm import fused_add_layer_norm, fused_add_rms_norm, layer_norm, rms_norm

# Rounding to a half precision type: half of its machine epsilon, relative.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SHAPES = [(1, 8), (3, 256), (2, 5, 64), (0, 16), (4, 1000), (3, 37)]


def close(result: torch.Tensor, exact: torch.Tensor) -> bool:
    rounding = ROUNDING[result.dtype]
    return torch.allclose(result.double(), exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("unit_offset", [False, True])
def test_rms_norm_is_the_float64_result_rounded_once(dtype, shape, unit_offset, face):
    torch.manual_seed(0)
    x, weight = (10 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    result = rms_norm(x, weight, 1e-5, unit_offset=unit_offset)
    with use_face("reference"):
        exact = rms_norm(x.double(), weight.double(), 1e-5, unit_offset=unit_offset)
    assert result.dtype == dtype
    assert close(result, exact)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("unit_offset", [False, True])
def test_fused_add_is_the_add_and_the_norm_done_apart(dtype, unit_offset, face):
    torch.manual_seed(0)
    x, residual, weight = torch.randn(6, 32).to(dtype), torch.randn(6, 32).to(dtype), torch.randn(32).to(dtype)
    before = x.clone(), residual.clone()
    normed, new_residual = fused_add_rms_norm(x, residual, weight, 1e-6, unit_offset=unit_offset)
    assert torch.equal(new_residual, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight, 1e-6, unit_offset=unit_offset))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm_is_the_float64_result_rounded_once(dtype, shape, with_bias, face):
    torch.manual_seed(0)
    x, weight = (5 * torch.randn(shape) + 3).to(dtype), torch.randn(shape[-1]).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype) if with_bias else None
    with use_face("reference"):
        exact = layer_norm(x.double(), weight.double(), None if bias is None else bias.double(), 1e-5)
    assert torch.allclose(layer_norm(x, weight, bias, 1e-5).double(), exact, rtol=2 * ROUNDING[dtype], atol=4e-6)


@pytest.mark.parametrize(("module", "unit_offset"), [(LlamaRMSNorm, False), (GemmaRMSNorm, True)])
def test_rms_norm_equals_the_one_of_transformers(face, module, unit_offset):
    torch.manual_seed(0)
    theirs = module(64, eps=1e-6)
    theirs.weight.data = torch.randn(64)
    x = torch.randn(7, 64)
    ours = rms_norm(x, theirs.weight.data, 1e-6, unit_offset=unit_offset)
    assert torch.allclose(ours, theirs(x), rtol=1e-6, atol=1e-6)


def test_gemma_adds_one_to_the_weight_in_fp32(face):
    # In bf16, 1 + 2**-10 would be 1.
    x, weight = torch.ones(1, 64, dtype=torch.bfloat16) * 3, torch.full((64,), 2**-10, dtype=torch.bfloat16)
    big = torch.cat([x, x * 1000], dim=0)
    theirs = GemmaRMSNorm(64, eps=0.0).to(torch.bfloat16)
    theirs.weight.data = weight
    assert torch.equal(rms_norm(big, weight, 0.0, unit_offset=True), theirs(big))


def test_bf16_squares_are_added_in_fp32(face):
    # 4096 equal squares: a sum in bf16 would stop growing at 256 of them.
    x = torch.full((1, 4096), 0.5, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), 0.0), torch.ones_like(x))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_fused_add_is_the_add_and_the_layer_norm_done_apart(dtype, with_bias, face):
    torch.manual_seed(0)
    x, residual, weight = torch.randn(6, 40).to(dtype), torch.randn(6, 40).to(dtype), torch.randn(40).to(dtype)
    bias = torch.randn(40).to(dtype) if with_bias else None
    before = x.clone(), residual.clone()
    normed, new_residual = fused_add_layer_norm(x, residual, weight, bias, 1e-6)
    assert torch.equal(new_residual, x + residual)
    assert torch.equal(normed, layer_norm(x + residual, weight, bias, 1e-6))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_a_large_mean_does_not_swallow_the_variance(face):
    torch.manual_seed(0)
    x = torch.randn(3, 512) / 8 + 4096
    ours = layer_norm(x, torch.ones(512), None, 0.0)
    exact = torch.nn.functional.layer_norm(x.double(), (512,), eps=0.0)
    assert torch.allclose(ours.double(), exact, atol=5e-3)  # numbers of that size have a unit of 5e-4


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_rows_that_are_apart_give_what_they_give_together(norm, face):
    torch.manual_seed(0)
    wide, weight = torch.randn(5, 100), torch.randn(40)
    options = () if norm is rms_norm else (None,)
    for x in (wide[:, 20:60], wide[:, :80:2], wide[:, :80].view(5, 2, 40)[:, 1:], wide[:, :40].t().contiguous().t()):
        ours, expected = norm(x, weight, *options, 1e-5), norm(x.contiguous(), weight, *options, 1e-5)
        assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(dtype, level, num_threads):
    torch.manual_seed(0)
    x, weight = torch.randn(99, 1000).to(dtype), torch.randn(1000).to(dtype)
    for norm in (lambda rows: rms_norm(rows, weight, 1e-5), lambda rows: layer_norm(rows, weight, weight, 1e-5)):
        assert torch.equal(norm(x), torch.cat([norm(row) for row in x.split(1)]))


def test_the_layer_norm_reference_equals_torch():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 32).double(), torch.randn(32).double(), torch.randn(32).double()
    with use_face("reference"):
        ours = layer_norm(x, weight, bias, 1e-5)
    assert torch.allclose(ours, torch.nn.functional.layer_norm(x, (32,), weight, bias, 1e-5), atol=1e-12)


def test_wrong_arguments_are_named():
    x = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="weight must have shape"):
        rms_norm(x, torch.zeros(4), 1e-6)
    with pytest.raises(ValueError, match="residual must be like x"):
        fused_add_rms_norm(x, x[:1], torch.zeros(8), 1e-6)
    with pytest.raises(ValueError, match="residual must be like x"):
        fused_add_rms_norm(x, x.bfloat16(), torch.zeros(8), 1e-6)
    with pytest.raises(ValueError, match="residual must be like x"):
        fused_add_layer_norm(x, x[:1], torch.zeros(8), None, 1e-6)
    with pytest.raises(ValueError, match="bias must have shape"):
        layer_norm(x, torch.zeros(8), torch.zeros(4), 1e-6)
