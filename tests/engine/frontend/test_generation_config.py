"""Where default sampling values and end tokens come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.config.generation import GenerationConfig, load_generation_config
from vllm_engine.errors import ConfigError

MODEL = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "max_new_tokens": 99,
    "do_sample": True,
    "eos_token_id": [7, 8],
}


def load(folder: Path, generation: Any = MODEL, config: Any = None, **options: Any) -> GenerationConfig:
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return load_generation_config(EngineArgs(str(folder), **options).create_config().model, folder)


def test_the_models_own_values_are_the_defaults(tmp_path: Path) -> None:
    expected = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 99}
    assert load(tmp_path) == GenerationConfig(expected, (7, 8))


def test_vllm_takes_no_values_but_still_the_end_tokens(tmp_path: Path) -> None:
    assert load(tmp_path, generation_config="vllm") == GenerationConfig({}, (7, 8))


def test_another_folder_can_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"min_p": 0.1}')
    assert load(tmp_path, generation_config=str(other)) == GenerationConfig({"min_p": 0.1}, (7, 8))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, generation_config=str(tmp_path / "nowhere"))
    assert caught.value.field == "generation_config"


def test_overrides_win(tmp_path: Path) -> None:
    override = {"temperature": 0, "repetition_penalty": 1.1, "eos_token_id": 9}
    loaded = load(tmp_path, override_generation_config=override)
    assert loaded.sampling["temperature"] == 0
    assert loaded.sampling["repetition_penalty"] == 1.1
    assert loaded.sampling["top_p"] == 0.95
    assert loaded.eos_token_ids == (9,)
    alone = load(tmp_path, override_generation_config={"top_k": 3}, generation_config="vllm")
    assert alone.sampling == {"top_k": 3}


def test_end_tokens_fall_back_to_the_models_config(tmp_path: Path) -> None:
    assert load(tmp_path, None, {"eos_token_id": 5}).eos_token_ids == (5,)
    assert load(tmp_path, {"eos_token_id": None}, {"text_config": {"eos_token_id": [6, 6]}}).eos_token_ids == (6,)
    assert load(tmp_path, {}, {}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("generation", "options"),
    [
        ([1], {}),
        ({"temperature": "hot"}, {}),
        ({"top_p": 2}, {}),
        ({"eos_token_id": "x"}, {}),
        ({}, {"override_generation_config": {"temprature": 1}}),
        ({}, {"override_generation_config": {"top_k": -5}}),
    ],
)
def test_values_that_no_request_may_have_are_refused_at_start(tmp_path: Path, generation: Any, options: Any) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, generation, **options)


def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match="generation_config"):
        load(tmp_path, None)


def test_a_file_that_says_not_to_sample_means_greedy_decoding(tmp_path: Path) -> None:
    assert load(tmp_path, {"do_sample": False, "top_k": 5}).sampling == {"temperature": 0.0, "top_k": 5}
    assert load(tmp_path, {"top_k": 5}).sampling == {"top_k": 5}
    override = {"temperature": 0.7}
    assert load(tmp_path, {"do_sample": False}, override_generation_config=override).sampling == override


def test_a_bad_value_is_blamed_on_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"temperature": -1})
    assert caught.value.field == "generation_config"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {}, override_generation_config={"temperature": -1})
    assert caught.value.field == "override_generation_config"
