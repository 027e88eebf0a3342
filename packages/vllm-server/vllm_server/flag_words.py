"""Errors about settings, in the words of the command line: ``--max-num-seqs`` and not ``max_num_seqs``."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from vllm_engine.config.cli import flag_of
from vllm_engine.errors import ConfigError


def in_flags(error: ConfigError, groups: Iterable[type[Any]]) -> str:
    """The message of ``error`` with the flags of the configuration ``groups`` where it names their fields.

    A name with an underscore is a setting's wherever it stands, except in a path or a file name; one without, such
    as ``port``, only at the start. A message that then names no flag at all begins with that of ``error.field``.
    """
    flags = {field.name: flag_of(field) for group in groups for field in dataclasses.fields(group)}
    message = str(error)
    for name, flag in flags.items():
        place = rf"(?<![\w./-]){name}(?![\w/-]|\.\w)" if "_" in name else rf"^{name}(?=:| must )"
        message = re.sub(place, flag, message)
    flag = flags.get(error.field or "", "")
    # A message about the model is clear without its flag, which is mostly not what was typed.
    if not flag or error.field == "model" or any(known in message for known in flags.values()):
        return message
    return f"{flag}: {message}"
