"""How layers are grouped and the cache is sized."""

import functools
from typing import get_args

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.core.kv_cache.layout import blocks_per_request, bytes_per_block, group_layers, plan_layout
from vllm_engine.core.limits import resolve_limits
from vllm_engine.errors import ConfigError
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.execution.memory import DeviceMemory
from vllm_engine.kv_layout import KVGroup, LayerKVSpec
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.cache import allocate_kv_cache

FULL = LayerKVSpec(2, 16, "bfloat16")
WINDOW = LayerKVSpec(2, 16, "bfloat16", sliding_window=64)
BLOCK_BYTES = 16 * 2 * 2 * 16 * 2  # of ``FULL``: tokens, keys and values, heads, their size, bytes of a number
plan_full = functools.partial(
    plan_layout, (KVGroup((0,), None),), block_size=16, block_bytes=BLOCK_BYTES, max_step_tokens=64, max_num_seqs=3
)


def test_equal_layers_form_one_group() -> None:
    assert group_layers([FULL] * 3) == (KVGroup((0, 1, 2), None),)


def test_mixed_layers_form_groups_of_the_size_of_the_smaller_kind() -> None:
    groups = group_layers([WINDOW, WINDOW, FULL, WINDOW, WINDOW, FULL])
    assert groups == (KVGroup((2, 5), None), KVGroup((0, 1), 64), KVGroup((3, 4), 64))


def test_layers_of_unequal_shape_share_one_table() -> None:
    assert group_layers([FULL, LayerKVSpec(1, 16, "bfloat16", 64)]) == (KVGroup((0, 1), None),)


def test_layers_of_unequal_format_share_one_table() -> None:
    specs = [FULL, LayerKVSpec(2, 16, "int8_per_token_head"), WINDOW]
    groups = group_layers(specs)
    assert groups == (KVGroup((0, 1, 2), None),)
    assert bytes_per_block(specs, groups, 8) == 8 * (2 * 2 * (16 * 2) + 2 * 2 * (16 + 4) + 2 * 2 * (16 * 2))


@pytest.mark.parametrize("cache_format", get_args(CacheFormat))
def test_a_token_costs_what_the_cache_takes(cache_format: CacheFormat) -> None:
    cache = allocate_kv_cache(3, 8, 2, 20, cache_format, "cpu")
    tensors = (cache.key, cache.value, cache.key_scale, cache.value_scale)
    num_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert 3 * 8 * LayerKVSpec(2, 20, cache_format).bytes_per_token == num_bytes


def test_a_block_costs_the_bytes_of_one_group() -> None:
    specs = [WINDOW, WINDOW, FULL, WINDOW, WINDOW, FULL]
    assert bytes_per_block(specs, group_layers(specs), 8) == 2 * 8 * (2 * 2 * 16 * 2)


def test_a_sliding_group_needs_blocks_for_its_window_and_the_step_only() -> None:
    assert blocks_per_request((KVGroup((0,), 64),), 16, 10_000, 32) == 7
    assert blocks_per_request((KVGroup((0,), None),), 16, 10_000, 32) == 625


def test_the_cache_takes_no_more_than_all_requests_can_use() -> None:
    layout = plan_full(memory_bytes=2**40, max_model_len=160)
    assert layout.num_blocks == 3 * 10 + 1


def test_a_cache_too_small_for_one_request_is_refused_with_a_length_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"lower max_model_len to 64 ") as caught:
        plan_full(memory_bytes=5 * BLOCK_BYTES, max_model_len=160)
    assert caught.value.field == "kv_cache_memory_bytes"
    fitting = plan_full(memory_bytes=5 * BLOCK_BYTES, max_model_len=64)
    assert fitting.num_blocks == 5


def test_a_cache_larger_than_the_free_memory_is_refused() -> None:
    model = LoadedModel(vocab_size=10, max_model_len=160, kv_specs=[FULL])
    with pytest.raises(ConfigError, match="are free") as caught:
        resolve_limits(EngineArgs(kv_cache_memory_bytes=2**30).create_config(), model, DeviceMemory(2**21, 2**20))
    assert caught.value.field == "kv_cache_memory_bytes"


def test_without_room_for_a_single_block_no_length_is_proposed() -> None:
    with pytest.raises(ConfigError, match=r": raise kv_cache_memory_bytes"):
        plan_full(memory_bytes=1, max_model_len=16)
