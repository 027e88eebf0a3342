"""Typed configuration: the groups, the flat arguments, and the model's own ``config.json``."""

from vllm_engine.config.engine_args import EngineArgs
from vllm_engine.config.groups import (
    CacheConfig,
    EngineConfig,
    LoadConfig,
    ModelConfig,
    ObservabilityConfig,
    SchedulerConfig,
)

__all__ = [
    "CacheConfig",
    "EngineArgs",
    "EngineConfig",
    "LoadConfig",
    "ModelConfig",
    "ObservabilityConfig",
    "SchedulerConfig",
]
