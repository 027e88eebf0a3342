import pytest
import torch
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as apply_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as apply_half_split

from vllm_kernels.backend import FACES, use_face
from vllm_kernels.ops.rotary import apply_rotary

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def cos_sin(rotary_dim: int, max_position: int = 64) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 16])
def test_rotation_equals_the_float64_reference(dtype, interleaved, rotary_dim):
    torch.manual_seed(0)
    query, key = torch.randn(9, 4, 16).to(dtype), torch.randn(9, 2, 16).to(dtype)
    positions, cache = torch.randint(0, 64, (9,)), cos_sin(rotary_dim)
    with use_face("reference"):
        exact = apply_rotary(query.double(), key.double(), positions, cache.double(), interleaved=interleaved)
    for result, wanted in zip(apply_rotary(query, key, positions, cache, interleaved=interleaved), exact, strict=True):
        assert result.dtype == dtype
        assert torch.allclose(result.double(), wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("face", FACES)
def test_half_split_pairs_equal_llama_of_transformers(face):
    torch.manual_seed(0)
    query, key, positions, cache = torch.randn(9, 4, 16), torch.randn(9, 2, 16), torch.arange(9) + 3, cos_sin(16)
    cos, sin = (part.repeat(1, 2)[None] for part in cache[positions].chunk(2, dim=1))
    theirs = apply_half_split(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin)
    with use_face(face):
        ours = apply_rotary(query, key, positions, cache)
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, their[0].transpose(0, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("face", FACES)
def test_interleaved_pairs_equal_gpt_j_of_transformers(face):
    torch.manual_seed(0)
    query, key, positions, cache = torch.randn(9, 4, 16), torch.randn(9, 2, 16), torch.arange(9) + 3, cos_sin(16)
    cos, sin = (part[None] for part in cache[positions].chunk(2, dim=1))
    with use_face(face):
        ours = apply_rotary(query, key, positions, cache, interleaved=True)
    for mine, x in zip(ours, (query, key), strict=True):
        assert torch.allclose(mine, apply_interleaved(x[None], sin, cos)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_dimensions_beyond_rotary_dim_and_the_inputs_stay_as_they_are(face, interleaved):
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 10), torch.randn(3, 1, 10)
    before = query.clone(), key.clone()
    with use_face(face):
        new_query, new_key = apply_rotary(query, key, torch.arange(1, 4), cos_sin(6), interleaved=interleaved)
    assert torch.equal(new_query[..., 6:], query[..., 6:])
    assert torch.equal(new_key[..., 6:], key[..., 6:])
    assert not torch.isclose(new_query[..., :6], query[..., :6]).any()
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


def test_wrong_arguments_are_named():
    query, key, positions = torch.zeros(2, 4, 8), torch.zeros(2, 1, 8), torch.tensor([0, 1])
    cache = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="query must have shape"):
        apply_rotary(query[0], key, positions, cache)
    with pytest.raises(ValueError, match="key must have shape"):
        apply_rotary(query, key[:1], positions, cache)
    with pytest.raises(ValueError, match=r"key must be torch.float32"):
        apply_rotary(query, key.half(), positions, cache)
    with pytest.raises(ValueError, match=r"positions must be torch.int64"):
        apply_rotary(query, key, positions.int(), cache)
    with pytest.raises(ValueError, match="at most head_dim=8 wide, got 10"):
        apply_rotary(query, key, positions, torch.zeros(4, 10))
    with pytest.raises(ValueError, match="cos_sin_cache must be even"):
        apply_rotary(query, key, positions, torch.zeros(4, 7))
    with pytest.raises(IndexError):
        apply_rotary(query, key, torch.tensor([0, 4]), cache)
