"""Environment variables: read when asked for, never at import. What there is stands in ``env_table``."""

import difflib
import logging
import os
import re
from typing import Any

from vllm_engine.env_table import VARIABLES, EnvVar
from vllm_engine.errors import ConfigError

__all__ = ["VARIABLES", "EnvVar", "check", "get", "validate"]

logger = logging.getLogger(__name__)  # ``vllm_engine.logging`` stands on this module

PREFIX = "VLLM_"
_SHOWN_CHARS = 100
# What Kubernetes puts into every container for a service whose name begins with "vllm".
_OF_KUBERNETES = re.compile(r"VLLM_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PORT|PROTO|ADDR))?)")
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")


def get(name: str) -> Any:
    """Value of a variable of the table, or its default when it is unset or empty.

    Raises ``ConfigError`` naming the variable when its text cannot be read.
    """
    variable = VARIABLES[name]
    text = os.environ.get(name, "")
    if not text.strip():
        return variable.default
    try:
        return variable.kind.parse(text)
    except ValueError as error:
        shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
        raise ConfigError(
            f"environment variable {name}={shown!r} is not valid: expected {variable.kind.words}", field=name
        ) from error


def check(*, strict: bool = False) -> None:
    """Look through the environment once, when an engine is configured: one warning for each problem.

    Raises:
        ConfigError: for a value that cannot be read, and with ``strict`` for the problems too, in one message.
    """
    found = validate()
    if found and strict:
        text = "; ".join(sentence for _, sentence in found)
        raise ConfigError(f"with fail_on_environ_validation: {text}", field=found[0][0])
    for _, sentence in found:
        logger.warning("%s", sentence)


def validate() -> list[tuple[str, str]]:
    """Name and one sentence for each variable that will not do what its setter may expect.

    These are ``VLLM_*`` names that nobody reads, and variables that ask for what this version does not do. Variables
    of other programs are left alone.

    Raises:
        ConfigError: for the first variable whose value cannot be read.
    """
    return [(name, problem) for name in sorted(os.environ) if (problem := _problem(name)) is not None]


def _problem(name: str) -> str | None:
    variable = VARIABLES.get(name)
    if _of_kubernetes(name) or (variable is not None and variable.read_by is not None):
        return None
    if variable is None:
        return f"unknown environment variable {name}{_nearest(name)}" if name.startswith(PREFIX) else None
    value = get(name)
    if variable.no_effect is None or value == variable.default:
        return None
    return f"environment variable {name} has no effect: {variable.no_effect}"


def _of_kubernetes(name: str) -> bool:
    if _OF_KUBERNETES.fullmatch(name):
        return True
    return name.endswith("_PORT") and _ADDRESS_OF_KUBERNETES.match(os.environ[name]) is not None


def _nearest(name: str) -> str:
    # Without what all have in common, which would make any two names look alike.
    known = [known.removeprefix(PREFIX) for known in VARIABLES if known.startswith(PREFIX)]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0.75)
    return f"; did you mean {PREFIX}{near[0]}?" if near else ""
