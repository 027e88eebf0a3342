"""``EngineArgs``: each setting is checked against its declaration, and a message says what it takes."""

from pathlib import Path
from typing import Any

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError


def test_settings_land_in_their_groups_and_the_rest_keeps_its_default() -> None:
    config = EngineArgs("demo", max_num_seqs=3, dtype="float32").create_config()
    assert (config.model.model, config.model.dtype, config.scheduler.max_num_seqs) == ("demo", "float32", 3)
    assert config.cache.prefix_caching is True


def test_the_default_model_is_the_documented_one() -> None:
    assert EngineArgs().create_config().model.model == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_num_seqs", 0, "a whole number of at least 1"),
        ("block_size", 5000, "a whole number of at least 1 and at most 1024"),
        ("block_size", 16.5, "a whole number of at least 1 and at most 1024"),
        ("dtype", "float8", "one of auto, half, float16, bfloat16, float, float32"),
        ("enable_prefix_caching", 1, "true or false"),
        ("ignore_patterns", [1], "a list, each a text"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineArgs(**{name: value})
    assert caught.value.field == name
    assert str(caught.value).startswith(f"{name} must be {allowed}, got {value!r}")


def test_an_unknown_setting_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean max_num_seqs"):
        EngineArgs(max_num_seq=4)


def test_values_may_be_written_as_the_command_line_has_them() -> None:
    args = EngineArgs(
        Path("some/folder"),  # type: ignore[arg-type]
        max_model_len="auto",
        max_num_batched_tokens="25.6k",
        served_model_name="one",
        hf_overrides='{"a": {"b": 1}}',
        compilation_config=0,
        pt_load_map_location='{"": "cpu"}',
        gpu_memory_utilization="0.5",
        cudagraph_capture_sizes="1,2,4",
        mm_encoder_attn_dtype="None",
    )
    assert args.options == {
        "model": "some/folder",
        "max_model_len": -1,
        "max_num_batched_tokens": 25600,
        "served_model_name": ["one"],
        "hf_overrides": {"a": {"b": 1}},
        "compilation_config": {"mode": 0},
        "pt_load_map_location": {"": "cpu"},
        "gpu_memory_utilization": 0.5,
        "cudagraph_capture_sizes": [1, 2, 4],
        "mm_encoder_attn_dtype": None,
    }


@pytest.mark.parametrize(
    "value",
    [{"a": object()}, {"a": float("nan")}, {1: 2}, {"a": b"x"}, {"a": 2**64}, {"a": "\ud800"}, lambda config: config],
)
def test_an_object_that_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="hf_overrides"):
        EngineArgs(hf_overrides=value)


def test_an_object_nested_beyond_reason_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="hf_overrides"):
        EngineArgs(hf_overrides=deep)
