"""What was asked for: the settings of the command line over those of ``--config``, sorted by whose they are."""

import argparse
from dataclasses import dataclass
from typing import Any

from vllm_engine.config import EngineConfig
from vllm_engine.config.cli import given_settings
from vllm_engine.config.config_file import lay_over, read_config_file
from vllm_engine.config.old_options import OldOptions
from vllm_engine.config.settings import settings_of
from vllm_engine.errors import ConfigError
from vllm_server.config import CONFIGS


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings by name, as they were written; old ones are not yet translated."""

    engine: dict[str, Any]
    server: dict[str, Any]


def read_settings(namespace: argparse.Namespace) -> Settings:
    """The settings of a parsed command line and of the file that its ``config`` names.

    Raises:
        ConfigError: for a file that cannot be read, or when two models are named.
    """
    given = given_settings(namespace, *CONFIGS)
    tag = getattr(namespace, "model_tag", None)
    if tag is not None:
        if given.get("model", tag) != tag:
            raise ConfigError(f"two models are named: {tag} and --model {given['model']}", field="model")
        given["model"] = tag
    if getattr(namespace, "config", None):
        in_file = read_config_file(namespace.config, *CONFIGS)
        given = lay_over(in_file, given, getattr(namespace, "only_keys", set()))
    engine = settings_of(EngineConfig).keys() | settings_of(OldOptions).keys()
    return Settings(
        engine={name: value for name, value in given.items() if name in engine},
        server={name: value for name, value in given.items() if name not in engine},
    )
