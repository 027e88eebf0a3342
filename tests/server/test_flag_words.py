"""Messages about settings, turned into the words of the command line."""

import pytest

from vllm_engine.errors import ConfigError
from vllm_server.config import CONFIGS
from vllm_server.flag_words import in_flags


@pytest.mark.parametrize(
    ("message", "field", "shown"),
    [
        ("max_num_seqs must be at least 1", "max_num_seqs", "--max-num-seqs must be at least 1"),
        ("port: too large", "port", "--port: too large"),
        ("lower max_model_len to 32.", None, "lower --max-model-len to 32."),
        ("max_model_len=9 is too long", "max_model_len", "--max-model-len=9 is too long"),
        ("no port is free", "port", "--port: no port is free"),
        ("it rained", "port", "--port: it rained"),
        ("it rained", "no_such_setting", "it rained"),
        ("no model folder there", "model", "no model folder there"),
        ("/a/max_model_len/b is missing", "model", "/a/max_model_len/b is missing"),
        ("generation_config.json is broken", "model", "generation_config.json is broken"),
        ("chat_template.jsonl is broken", "model", "chat_template.jsonl is broken"),
    ],
)
def test_settings_are_called_by_their_flags_but_paths_are_left_alone(
    message: str, field: str | None, shown: str
) -> None:
    assert in_flags(ConfigError(message, field=field), CONFIGS) == shown
