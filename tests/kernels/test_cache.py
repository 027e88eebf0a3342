from typing import get_args

import pytest
import torch

from vllm_kernels.backend import use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.cache import STORAGE, KVCache, allocate_kv_cache, copy_blocks, gather_kv, write_kv
from vllm_kernels.ops.rotary import rope_and_cache

FORMATS = get_args(CacheFormat)
PLAIN = FORMATS[:3]
# Largest error of an entry, as a share of the largest of its head: half a step of 127, or of 3 and 2 mantissa bits.
ERROR = {"int8_per_token_head": 0.5 / 127, "fp8_per_token_head": 2**-4, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}


def tokens_of(cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as numbers, [slots, num_kv_heads, head_dim]: the layout turned around by hand."""
    found = []
    for entries, scales in ((cache.key, cache.key_scale), (cache.value, cache.value_scale)):
        numbers = entries.float() if scales is None else entries.float() * scales[..., None]
        found.append(numbers.transpose(1, 2).flatten(0, 1))
    return found[0], found[1]


def every_8_bit_number(dtype: torch.dtype) -> torch.Tensor:
    """Finite ones, ascending, float64, without a negative zero."""
    numbers = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).double()
    return numbers[numbers.isfinite()].unique()


@pytest.mark.parametrize("format", PLAIN)
def test_tokens_land_in_their_slots_and_nowhere_else(face, format):
    torch.manual_seed(0)
    cache = allocate_kv_cache(5, 4, 2, 8, format)
    key, value = torch.randn(2, 3, 2, 8).to(STORAGE[format])
    write_kv(key, value, cache, torch.tensor([17, 2, 8]))
    for found, tensor in zip(tokens_of(cache), (key, value), strict=True):
        expected = torch.zeros(20, 2, 8)
        expected[[17, 2, 8]] = tensor.float()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_keys_and_values_are_rounded_to_the_dtype_of_the_cache(face, dtype, format):
    torch.manual_seed(0)
    cache = allocate_kv_cache(2, 2, 1, 8, format)
    key, value = torch.randn(2, 3, 1, 8).to(dtype)
    write_kv(key, value, cache, torch.tensor([3, -1, 0]))
    for found, tensor in zip(tokens_of(cache), (key, value), strict=True):
        assert torch.equal(found[[3, 0]], tensor[[0, 2]].to(STORAGE[format]).float())


@pytest.mark.parametrize("format", ["fp8_e4m3", "fp8_e5m2"])
def test_8_bit_entries_are_the_nearest_numbers_there_are(face, format):
    torch.manual_seed(0)
    numbers = every_8_bit_number(STORAGE[format])
    middles = (numbers[:-1] + numbers[1:]) / 2
    edges = [middles, middles * (1 + 2**-20), middles * (1 - 2**-20), numbers, torch.tensor([1e9, -1e9, 470.0, 6e4])]
    x = torch.cat([*edges, torch.randn(999) * 100]).float()
    x = torch.nn.functional.pad(x, (0, -len(x) % 16)).view(-1, 1, 16)
    cache = allocate_kv_cache(1, len(x), 1, 16, format)
    write_kv(x, -x, cache, torch.arange(len(x)))
    key, value = tokens_of(cache)
    distance = (x.double() - key).abs()
    assert torch.equal(distance, (x.double()[..., None] - numbers).abs().amin(-1))
    assert torch.equal(value, -key)
    # Ties go to the even one of the two.
    tied = torch.isin(x.double(), middles)
    assert not (cache.key.view(torch.uint8).transpose(1, 2).flatten(0, 1)[tied] & 1).any()


@pytest.mark.parametrize("format", ["fp8_e4m3", "fp8_e5m2"])
def test_8_bit_entries_keep_nan_and_saturate(face, format):
    cache = allocate_kv_cache(1, 1, 1, 4, format)
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -1e-30]).view(1, 1, 4)
    write_kv(x, x, cache, torch.tensor([0]))
    largest = torch.finfo(STORAGE[format]).max
    assert torch.equal(
        torch.nan_to_num(tokens_of(cache)[0].view(4), nan=5.0), torch.tensor([5.0, largest, -largest, 0])
    )


@pytest.mark.parametrize("format", ["int8_per_token_head", "fp8_per_token_head"])
@pytest.mark.parametrize("head_dim", [8, 16, 40, 128])
def test_each_head_of_each_token_has_its_own_scale(face, format, head_dim):
    torch.manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 1e4, 0.0, 1e-42, 3e37])[:, None, None]
    key, value = torch.randn(6, 3, head_dim) * sizes, torch.randn(6, 3, head_dim) / (sizes + 1)
    cache = allocate_kv_cache(3, 4, 3, head_dim, format)
    slots = torch.tensor([5, 11, 0, 7, 2, 3])
    write_kv(key, value, cache, slots)
    largest = 127 if format.startswith("int8") else 448
    for found, scales, x in zip(tokens_of(cache), (cache.key_scale, cache.value_scale), (key, value), strict=True):
        peak = x.abs().amax(-1)
        expected = torch.where(peak == 0, 1.0, peak / largest)
        assert torch.equal(scales.transpose(1, 2).flatten(0, 1)[slots], expected)
        # A scale is a multiple of 1.4e-45, and is off by half of that at most.
        assert ((found[slots] - x).abs() <= (peak * ERROR[format])[..., None] * (1 + 1e-6) + 4e-43).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_face_stores_the_bits_of_the_reference(face, format, dtype):
    torch.manual_seed(0)
    caches = []
    key, value = (20 * torch.randn(2, 9, 3, 24)).to(dtype)
    slots = torch.tensor([1, -1, 30, 4, 18, -1, 2, 9, 10])
    for served in ("reference", face):
        caches.append(allocate_kv_cache(5, 7, 3, 24, format))
        with use_face(served):
            write_kv(key, value, caches[-1], slots)
    for name in ("key", "value", "key_scale", "value_scale"):
        ours, theirs = (getattr(cache, name) for cache in caches)
        assert ours is theirs is None or torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("format", ["int8_per_token_head", "fp8_per_token_head"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 23])
def test_a_head_that_is_not_finite_reads_as_nan(face, format, bad, place):
    cache = allocate_kv_cache(1, 2, 2, 24, format)
    key = torch.ones(1, 2, 24)
    key[0, 1, place] = bad
    write_kv(key, key, cache, torch.tensor([1]))
    for found in tokens_of(cache):
        assert found[1, 1].isnan().all()
        assert torch.equal(found[1, 0], key[0, 0])


@pytest.mark.parametrize("slots", [[-1, 3, -1], [-1, -1, -1]])
def test_a_negative_slot_is_left_out(face, slots):
    cache = allocate_kv_cache(2, 2, 1, 4, "float32")
    key = torch.ones(3, 1, 4)
    write_kv(key, 2 * key, cache, torch.tensor(slots))
    keys, values = tokens_of(cache)
    written = [slot in slots for slot in range(4)]
    assert (keys.view(4, -1) == 1).all(dim=1).tolist() == written
    assert (values.view(4, -1) == 2).all(dim=1).tolist() == written
    assert keys.sum() == 4 * sum(written)


def test_parts_of_a_wider_tensor_are_stored_like_any_other(face):
    torch.manual_seed(0)
    qkv = torch.randn(3, 5 * 2 * 8)
    key, value = qkv[:, 16:32].view(3, 2, 8), qkv[:, 40:56].view(3, 2, 8)
    caches = [allocate_kv_cache(2, 4, 2, 8, "bfloat16") for _ in range(2)]
    write_kv(key, value, caches[0], torch.tensor([6, 1, 2]))
    write_kv(key.contiguous(), value.contiguous(), caches[1], torch.tensor([6, 1, 2]))
    assert torch.equal(caches[0].key, caches[1].key)
    assert torch.equal(caches[0].value, caches[1].value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_new_cache_holds_zeros_only_and_knows_its_format(format):
    cache = allocate_kv_cache(3, 16, 2, 8, format)
    assert cache.format == format
    assert (cache.num_blocks, cache.block_size, cache.num_kv_heads, cache.head_dim) == (3, 16, 2, 8)
    for tensor in tokens_of(cache):
        assert not tensor.any()


@pytest.mark.parametrize("scales", [(0.1, 3.0), (1.0, 0.02), (7.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_one_scale_of_all_keys_and_one_of_all_values(face, dtype, scales):
    torch.manual_seed(0)
    cache = allocate_kv_cache(3, 4, 2, 24, "fp8_e4m3", k_scale=scales[0], v_scale=scales[1])
    key, value = (20 * torch.randn(2, 7, 2, 24)).to(dtype)
    slots = torch.tensor([3, 0, 11, -1, 5, 6, 8])
    write_kv(key, value, cache, slots)
    numbers = every_8_bit_number(torch.float8_e4m3fn)
    written = slots >= 0
    read = gather_kv(cache, slots[written], torch.float32)
    for x, entries, scale, back in zip((key, value), tokens_of(cache), scales, read, strict=True):
        units = (x[written].float() / torch.full(x[written].shape, scale)).double().clamp(-448, 448)
        found = entries[slots[written]].double()
        assert torch.equal((units - found).abs(), (units[..., None] - numbers).abs().amin(-1))
        assert torch.equal(back, (found.float() * torch.tensor(scale)))
    qkv = torch.cat([torch.zeros(7, 3, 24), key.float(), value.float()], dim=1).to(dtype).flatten(1)
    twin = allocate_kv_cache(3, 4, 2, 24, "fp8_e4m3", k_scale=scales[0], v_scale=scales[1])
    rope_and_cache(qkv, 3, None, None, twin, slots)
    assert torch.equal(twin.key.float(), cache.key.float()) and torch.equal(twin.value.float(), cache.value.float())


def test_an_empty_step_writes_nothing(face):
    cache = allocate_kv_cache(1, 2, 1, 4, "float32")
    write_kv(torch.zeros(0, 1, 4), torch.zeros(0, 1, 4), cache, torch.zeros(0, dtype=torch.int64))
    assert not cache.key.any()


@pytest.mark.parametrize("slot", [4, 2**40])
def test_a_slot_outside_of_the_cache_is_refused(refusing_face, slot):
    cache = allocate_kv_cache(2, 2, 1, 4, "float32")
    with pytest.raises(IndexError):
        write_kv(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), cache, torch.tensor([0, slot]))


def test_wrong_arguments_are_named():
    cache = allocate_kv_cache(2, 2, 1, 4, "float32")
    key, slots = torch.zeros(2, 1, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        allocate_kv_cache(2, 0, 1, 4, "float32")
    with pytest.raises(ValueError, match=r"format must be one of float32, .*, got 'fp4'"):
        allocate_kv_cache(2, 2, 1, 4, "fp4")
    with pytest.raises(ValueError, match="key must have shape"):
        write_kv(key[..., :2], key, cache, slots)
    with pytest.raises(ValueError, match=r"value must be floating point, got torch.int32"):
        write_kv(key, key.int(), cache, slots)
    with pytest.raises(ValueError, match="slot_mapping must have shape"):
        write_kv(key, key, cache, slots[:1])
    with pytest.raises(ValueError, match=r"slot_mapping must be torch.int64, got torch.int32"):
        write_kv(key, key, cache, slots.int())


def test_scales_of_all_keys_and_values_are_for_e4m3_only():
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="k_scale must be finite and above 0"):
            allocate_kv_cache(1, 1, 1, 8, "fp8_e4m3", "cpu", k_scale=scale)
    for format in ("bfloat16", "fp8_e5m2", "fp8_per_token_head"):
        with pytest.raises(ValueError, match=f"v_scale is for the format fp8_e4m3, got 2.0 for {format}"):
            allocate_kv_cache(1, 1, 1, 8, format, "cpu", v_scale=2.0)


def test_tensors_that_make_no_cache_are_refused():
    entries, scales = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4)
    small = entries.to(torch.int8)
    with pytest.raises(ValueError, match="key of a cache must be contiguous"):
        KVCache(entries.transpose(0, 1), entries)
    with pytest.raises(ValueError, match="value of a cache must be contiguous"):
        KVCache(entries, entries[:1])
    with pytest.raises(ValueError, match=r"value of a cache must be torch.float32, got torch.bfloat16"):
        KVCache(entries, entries.bfloat16())
    with pytest.raises(ValueError, match="scales of both keys and values, or of neither"):
        KVCache(small, small, scales)
    with pytest.raises(ValueError, match=r"no cache format stores torch.int8 without scales"):
        KVCache(small, small)
    with pytest.raises(ValueError, match="value_scale must have shape"):
        KVCache(small, small, scales, scales[:1])
    with pytest.raises(ValueError, match=r"key_scale must be torch.float32"):
        KVCache(small, small, scales.half(), scales.half())


def filled_cache(format: CacheFormat, head_dim: int = 24) -> KVCache:
    """Five blocks of three tokens, all of them written."""
    torch.manual_seed(0)
    cache = allocate_kv_cache(5, 3, 2, head_dim, format)
    with use_face("reference"):
        write_kv(torch.randn(15, 2, head_dim), torch.randn(15, 2, head_dim), cache, torch.arange(15))
    return cache


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [24, 7])
def test_blocks_are_copied_with_their_scales_and_no_other_changes(face, format, head_dim):
    cache = filled_cache(format, head_dim)
    before = [tokens.clone() for tokens in tokens_of(cache)]
    copy_blocks(cache, torch.tensor([4, 0, 0]), torch.tensor([1, 3, 2]))
    for found, tokens in zip(tokens_of(cache), before, strict=True):
        blocks = tokens.view(5, 3, 2, head_dim)
        assert torch.equal(found, blocks[[0, 4, 0, 0, 4]].flatten(0, 1))
    copy_blocks(cache, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_slots_are_gathered_as_numbers(face, format, dtype):
    cache = filled_cache(format)
    slots = torch.tensor([14, 0, -1, 7, 7])
    for found, tokens in zip(gather_kv(cache, slots, dtype), tokens_of(cache), strict=True):
        assert found.dtype == dtype and found.is_contiguous()
        expected = tokens[[14, 0, 7, 7]].to(dtype)  # times scales in fp32
        assert torch.allclose(found[[0, 1, 3, 4]], expected, rtol=1e-6 if dtype == torch.float64 else 0, atol=0)
        assert not found[2].any()
    key, _ = gather_kv(cache, slots[:0], dtype)
    assert key.shape == (0, 2, 24)


@pytest.mark.parametrize("bad", [5, -1])
def test_blocks_and_slots_outside_of_the_cache_are_refused(refusing_face, bad):
    cache = filled_cache("float32")
    before = cache.key.clone()
    for sources, targets in (([bad], [0]), ([0], [bad])):
        with pytest.raises(IndexError, match="blocks must be 0 to 4"):
            copy_blocks(cache, torch.tensor(sources), torch.tensor(targets))
    with pytest.raises(IndexError, match="slots must be 0 to 14"):
        gather_kv(cache, torch.tensor([15, bad]), torch.float32)
    assert torch.equal(cache.key, before)


@pytest.mark.parametrize("format", ["int8_per_token_head", "fp8_e4m3"])
def test_triton_leaves_out_what_lies_outside_and_launches_what_is_compiled(format):
    pytest.importorskip("triton")
    from vllm_kernels.triton.kernel import recorded

    cache = allocate_kv_cache(2, 16, 8, 128, format)
    write_kv(torch.ones(1, 8, 128), torch.ones(1, 8, 128), cache, torch.tensor([3]))
    with use_face("triton"), recorded() as launches:
        copy_blocks(cache, torch.tensor([0, -1, 2, 2**40]), torch.tensor([-2, 0, 1, 1]))
        assert not cache.key[1].float().any() and (cache.value_scale is None or not cache.value_scale[1].any())
        key, value = gather_kv(cache, torch.tensor([3, 32, 2**40]), torch.float16)
        assert (key[0] == 1).all() and (value[0] == 1).all() and not key[1:].any() and not value[1:].any()
    assert len(launches) == 2
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)


def test_wrong_arguments_of_copies_and_gathers_are_named():
    cache, blocks = filled_cache("float32"), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"targets must have shape \[2\]"):
        copy_blocks(cache, blocks, blocks[:1])
    with pytest.raises(ValueError, match=r"sources must be torch.int64, got torch.int32"):
        copy_blocks(cache, blocks.int(), blocks)
    with pytest.raises(ValueError, match=r"slots must be torch.int64, got torch.int32"):
        gather_kv(cache, blocks.int(), torch.float32)
    with pytest.raises(ValueError, match=r"dtype must be floating point, got torch.int8"):
        gather_kv(cache, blocks, torch.int8)
