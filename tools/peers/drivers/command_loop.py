"""The child's side of ``driver.py``. Standard library only: it runs in every peer's environment."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(commands: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer commands until the input ends. What libraries print goes to standard error, out of the answers' way."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        command = commands[arguments.pop("do")]
        try:
            answer = command(**arguments)
        except (Exception, SystemExit) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def check_lengths(lengths: list[int], requests: int, length: int) -> None:
    """Raise ``RuntimeError`` when less work was done than was asked for."""
    if lengths != [length] * requests:
        raise RuntimeError(f"asked for {requests} times {length} tokens, got {lengths}")
