"""Saved results, read back."""

import json
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError


def read_side(text: str) -> list[dict[str, Any]]:
    """The results of ``a.json,b.json``: each file holds one, or several that were appended.

    Raises:
        CommandError: (exit code 2) a file is not there, or holds no result.
    """
    names = [text] if Path(text).is_file() else [name for name in text.split(",") if name]
    if not names:
        raise CommandError(f"{text!r} names no file", exit_code=2)
    return [result for name in names for result in read(Path(name))]


def read(path: Path) -> list[dict[str, Any]]:
    """All results of a file; see ``read_side``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}", exit_code=2) from error
    decoder = json.JSONDecoder()
    results = []
    rest = text.lstrip()
    while rest:
        try:
            result, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{path} is no JSON: {error}", exit_code=2) from error
        if not isinstance(result, dict):
            raise CommandError(f"{path} holds no result of a benchmark", exit_code=2)
        results.append(result)
        rest = rest[end:].lstrip()
    if not results:
        raise CommandError(f"{path} is empty", exit_code=2)
    return results
