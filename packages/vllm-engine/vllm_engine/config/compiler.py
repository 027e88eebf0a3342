"""Whether torch compiles what lies between the kernels of a model, by the settings."""

from typing import Literal, cast

from vllm_engine.config.groups import EngineConfig
from vllm_engine.errors import ConfigError

Backend = Literal["eager", "inductor"]

_LEVEL = 3
"""Optimization level from which on a GPU's models are compiled without a word about it."""


def compiler_backend(config: EngineConfig) -> Backend | None:
    """What compiles; None where nothing is compiled. ``enforce_eager`` wins."""
    if config.compilation.mode is None:
        wanted = config.device.kind == "cuda" and config.optimization_level >= _LEVEL
    else:
        wanted = config.compilation.mode > 0
    return cast(Backend, config.compilation.backend) if wanted and not config.model.enforce_eager else None


def check_compiler(config: EngineConfig) -> None:
    """Raise ``ConfigError`` for settings of a compiler that does not run."""
    if config.compilation.cache_dir and compiler_backend(config) != "inductor":
        raise ConfigError(
            "compilation_config.cache_dir needs compilation_config.mode=1 and compilation_config.backend=inductor",
            field="compilation_config.cache_dir",
        )
