"""What stops a start before anything heavy is loaded."""

import json
from pathlib import Path

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_engine.frontend.engine_frontend import ModelFrontend, resolve_model_path


def test_a_folder_without_config_json_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json") as caught:
        resolve_model_path(EngineArgs(str(tmp_path)).create_config())
    assert caught.value.field == "model"


def test_a_model_without_any_tokenizer_file_is_refused(tmp_path: Path) -> None:
    """transformers would make an empty tokenizer of it, to which every prompt is empty."""
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        ModelFrontend.load(EngineArgs(str(tmp_path)).create_config(), tmp_path)
    assert caught.value.field == "tokenizer"
