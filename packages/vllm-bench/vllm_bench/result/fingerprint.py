"""What a result was measured with: machine, versions, flags. Never a secret."""

import math
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vllm_bench import __version__
from vllm_cli import machine
from vllm_cli.masked_variables import masked, variables

HIDDEN = "(not shown)"

_LEFT_OUT = frozenset({"api_key", "benchmark", "metadata", "seed"})
"""A secret, the command's own, and what the result has elsewhere."""
_OF_THE_COMMAND = frozenset({"model_tag", "model", "config", "print_config", "only_keys", "serve_options"})
"""What is among the settings, or only says where they stand."""
_SECRET = re.compile(
    r"api.?key|secret|passw|credential|authorization|cookie|(auth|access|bearer|hf).?token", re.IGNORECASE
)
_SURELY_NO_WORD = 8
"""Letters from which on a secret may be looked for in any text: a shorter one may be a part of a word."""


def fingerprint(options: Namespace, server_version: str | None) -> dict[str, Any]:
    """``machine`` (of the client), ``versions`` (``server`` None if it does not say), ``flags`` and ``seed``."""
    return _fingerprint(vars(options), {"server": server_version}, getattr(options, "seed", None))


def engine_fingerprint(options: Namespace, settings: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """The same for a benchmark that holds or starts the engine on this machine.

    ``flags`` are those of the benchmark, ``settings`` those given to engine and server, ``environment`` the variables
    that either may heed.
    """
    own = {name: value for name, value in vars(options).items() if name not in {*settings, *_OF_THE_COMMAND}}
    versions = {name.replace("-", "_"): _version(name) for name in ("vllm-engine", "vllm-kernels", "torch")}
    shown = {name: _shown(name, value) for name, value in sorted(settings.items())}
    return _fingerprint(own, versions, seed) | {"settings": shown, "environment": variables()}


def _fingerprint(flags: Mapping[str, Any], versions: Mapping[str, str | None], seed: int | None) -> dict[str, Any]:
    system, cpu, memory = machine.system(), machine.cpu(), machine.memory()
    flags = {name: value for name, value in flags.items() if name not in _LEFT_OUT}
    return {
        "machine": {
            "cpu": cpu.get("model"),
            "cores": cpu.get("usable by this process") or cpu.get("logical cpus"),
            "cpu_limit": cpu.get("cgroup cpu limit"),
            "memory": memory.get("total"),
            "memory_limit": memory.get("cgroup limit"),
            "os": system.get("os"),
            "kernel": system.get("kernel"),
        },
        "versions": {"vllm_bench": __version__, "python": system["python"].split()[0], **versions},
        "flags": {name: _shown(name, value) for name, value in sorted(flags.items())},
        "seed": seed,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def words_without_secrets(words: Iterable[str], settings: Mapping[str, Any]) -> list[str]:
    """A command's ``words`` without the values of the secret ones among its ``settings``."""
    values = [value for name, value in settings.items() if _SECRET.search(name)]
    secrets = {str(each) for value in values for each in (value if isinstance(value, (list, tuple)) else [value])}

    def shown(word: str) -> str:
        flag, equals, value = word.partition("=")
        return "***" if word in secrets else f"{flag}=***" if equals and value in secrets else masked("word", word)

    return [shown(word) for word in words]


def without_secrets(result: Mapping[str, Any], secrets: Iterable[str]) -> dict[str, Any]:
    """``result`` with each of ``secrets`` struck out, wherever a server or a user has repeated it.

    A short one is looked for among the errors only.
    """
    present = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
    long = [secret for secret in present if len(secret) >= _SURELY_NO_WORD]
    return {
        key: _struck(value, present if key in ("errors", "error_counts", "partial_reason") else long)
        for key, value in result.items()
    }


def _struck(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    elif isinstance(value, Mapping):
        return {_struck(key, secrets): _struck(each, secrets) for key, each in value.items()}
    elif isinstance(value, list) and secrets and not (value and isinstance(value[0], float)):
        return [_struck(each, secrets) for each in value]
    return value


def _shown(name: str, value: Any) -> Any:
    """``value`` as JSON, without what must stay secret."""
    if name == "header":
        return _names_of_headers(value)
    if _SECRET.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, str):
        return masked("url", value) if "://" in value else value
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(name, each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _names_of_headers(value: Any) -> list[str]:
    """Of a mapping, of pairs, or of texts ``Name=value`` and ``Name: value``."""
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    pairs = value or []
    return [re.split("[=:]", each)[0].strip() if isinstance(each, str) else str(each[0]) for each in pairs]
