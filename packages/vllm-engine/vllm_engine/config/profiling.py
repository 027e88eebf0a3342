"""Which profiler an engine has, by its settings and the environment."""

import dataclasses

from vllm_engine import envs
from vllm_engine.config.groups.profiler import ProfilerConfig
from vllm_engine.errors import ConfigError

_DIR = "profiler_config.torch_profiler_dir"


def profiler_in_force(config: ProfilerConfig) -> ProfilerConfig | None:
    """What a profile records; None without a profiler. ``VLLM_TORCH_PROFILER_DIR`` is one where no setting is given.

    Raises:
        ConfigError: for keys that say how to profile where none is to be, and a profiler without a folder.
    """
    folder = envs.get("VLLM_TORCH_PROFILER_DIR")
    if config.profiler is None and folder is not None and config == ProfilerConfig():
        return dataclasses.replace(config, profiler="torch", torch_profiler_dir=folder)
    if config.profiler is None:
        for field in dataclasses.fields(config):
            if getattr(config, field.name) != field.default and not field.metadata["no_effect"]:
                name = f"profiler_config.{field.name}"
                raise ConfigError(f"{name} needs profiler_config.profiler to be torch", field=name)
        return None
    if not config.torch_profiler_dir:
        raise ConfigError(f"profiler_config.profiler={config.profiler} needs {_DIR}", field=_DIR)
    rounds = config.wait_iterations + config.warmup_iterations
    if rounds and not config.active_iterations:
        name = "profiler_config.active_iterations"
        raise ConfigError(f"{name} must be at least 1: rounds of 0 steps record nothing", field=name)
    return config
