"""What ``GET /server_info`` tells: settings and environment, without what opens doors."""

import dataclasses
import os
import platform
import re
from typing import Any

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_server import __version__
from vllm_server.config import ServerConfig

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def server_facts(engine: EngineConfig, server: ServerConfig) -> dict[str, Any]:
    """Settings, the ``VLLM_*`` environment and versions, as JSON values. What may be a secret is ``HIDDEN``."""
    return {
        "version": __version__,
        "vllm_config": _settings(engine),
        "server_config": _settings(server),
        "vllm_env": {
            name: HIDDEN if _SECRET_NAME.search(name) else _shown(os.environ[name])
            for name in sorted(envs.VARIABLES)
            if name.startswith(envs.PREFIX) and name in os.environ
        },
        "system_env": {"python": platform.python_version(), "platform": platform.machine(), "cpus": os.cpu_count()},
    }


def _settings(group: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            shown[field.name] = _settings(value)
        else:
            shown[field.name] = HIDDEN if field.metadata.get("secret") and value is not None else _shown(value)
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): HIDDEN if _SECRET_NAME.search(str(key)) else _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(item) for item in value]
    if isinstance(value, str):
        return _CREDENTIALS.sub(f"{HIDDEN}@", value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return f"{type(value).__module__}.{type(value).__name__}" if not isinstance(value, type) else value.__name__
