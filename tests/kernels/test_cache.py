import pytest
import torch

from vllm_kernels.backend import FACES, use_face
from vllm_kernels.ops.cache import allocate_kv_cache, write_kv


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tokens_land_in_their_slots_and_nowhere_else(face, dtype):
    torch.manual_seed(0)
    key_cache, value_cache = allocate_kv_cache(5, 4, 2, 8, dtype, "cpu")
    key, value = torch.randn(2, 3, 2, 8).to(dtype)
    with use_face(face):
        write_kv(key, value, key_cache, value_cache, torch.tensor([17, 2, 8]))
    expected = torch.zeros(20, 2, 8, dtype=dtype)
    expected[[17, 2, 8]] = key
    assert torch.equal(key_cache.view(20, 2, 8), expected)
    expected[[17, 2, 8]] = value
    assert torch.equal(value_cache.view(20, 2, 8), expected)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("cached", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_keys_and_values_are_rounded_to_the_dtype_of_the_cache(face, dtype, cached):
    torch.manual_seed(0)
    caches = allocate_kv_cache(2, 2, 1, 8, cached, "cpu")
    key, value = torch.randn(2, 3, 1, 8).to(dtype)
    with use_face(face):
        write_kv(key, value, *caches, torch.tensor([3, -1, 0]))
    for cache, tensor in zip(caches, (key, value), strict=True):
        assert torch.equal(cache.view(4, 1, 8)[[3, 0]], tensor[[0, 2]].to(cached))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("slots", [[-1, 3, -1], [-1, -1, -1]])
def test_slot_minus_one_is_left_out(face, slots):
    key_cache, value_cache = allocate_kv_cache(2, 2, 1, 4, torch.float32, "cpu")
    key = torch.ones(3, 1, 4)
    with use_face(face):
        write_kv(key, 2 * key, key_cache, value_cache, torch.tensor(slots))
    written = [slot in slots for slot in range(4)]
    assert (key_cache.view(4, -1) == 1).all(dim=1).tolist() == written
    assert (value_cache.view(4, -1) == 2).all(dim=1).tolist() == written
    assert key_cache.sum() == 4 * sum(written)


def test_a_new_cache_holds_zeros_only():
    for cache in allocate_kv_cache(3, 16, 2, 8, torch.bfloat16, "cpu"):
        assert not cache.any()


def test_an_empty_step_writes_nothing():
    caches = allocate_kv_cache(1, 2, 1, 4, torch.float32, "cpu")
    write_kv(torch.zeros(0, 1, 4), torch.zeros(0, 1, 4), *caches, torch.zeros(0, dtype=torch.int64))
    assert not caches[0].any()


def test_wrong_arguments_are_named():
    caches = allocate_kv_cache(2, 2, 1, 4, torch.float32, "cpu")
    key, slots = torch.zeros(2, 1, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        allocate_kv_cache(2, 0, 1, 4, torch.float32, "cpu")
    with pytest.raises(ValueError, match="key must have shape"):
        write_kv(key[..., :2], key, *caches, slots)
    with pytest.raises(ValueError, match=r"value must be floating point, got torch.int32"):
        write_kv(key, key.int(), *caches, slots)
    with pytest.raises(ValueError, match="slot_mapping must have shape"):
        write_kv(key, key, *caches, slots[:1])
    with pytest.raises(ValueError, match=r"slot_mapping must be torch.int64, got torch.int32"):
        write_kv(key, key, *caches, slots.int())
    with pytest.raises(ValueError, match="key_cache must come from allocate_kv_cache"):
        write_kv(key, key, caches[0].transpose(0, 1), caches[1], slots)
    with pytest.raises(IndexError):
        write_kv(key, key, *caches, torch.tensor([0, 4]))
