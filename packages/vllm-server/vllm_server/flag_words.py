"""Errors about settings, in the words of the command line: ``--max-num-seqs`` and not ``max_num_seqs``."""

import re
from collections.abc import Iterable
from typing import Any

from vllm_engine.config.settings import settings_of
from vllm_engine.errors import ConfigError


def in_flags(error: ConfigError, configs: Iterable[type[Any]]) -> str:
    """The message of ``error`` with the flags of the settings of ``configs`` where it names them.

    A name with an underscore is a setting's wherever it stands, except in a path or a file name; one without, such
    as ``port``, only at the start. A message that then names no flag at all begins with that of ``error.field``.
    """
    flags = {name: setting.flag for config in configs for name, setting in settings_of(config).items()}
    flags["config"] = "--config"
    message = re.sub(
        r"(?<![\w./'-])[a-z][a-z0-9]*(_[a-z0-9]+)+(?![\w/-]|\.(jsonl?|py|txt|jinja|ya?ml)\b)", _flag(flags), str(error)
    )
    message = re.sub(r"^[a-z]+(?=: | must be |=| cannot )", _flag(flags), message)
    flag = flags.get((error.field or "").partition(".")[0], "")
    # A message about the model is clear without its flag, which is mostly not what was typed.
    if not flag or error.field == "model" or "--" in message:
        return message
    return f"{flag}: {message}"


def _flag(flags: dict[str, str]) -> Any:
    return lambda found: flags.get(found[0], found[0])
