"""Saved results, read back."""

import json
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError

RUNS_OF_A_SWEEP = "*--run*.json"
"""The names of a sweep's results in its folder."""


def read_side(text: str) -> list[dict[str, Any]]:
    """The results of ``a.json,b.json``: each file holds one, or several that were appended; a folder those of a sweep.

    Raises:
        CommandError: (exit code 2) a file is not there, or holds no result.
    """
    names = [text] if Path(text).exists() else [name for name in text.split(",") if name]
    if not names:
        raise CommandError(f"{text!r} names no file", exit_code=2)
    return [result for name in names for path in _files(Path(name)) for result in read(path)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    runs = sorted(path.glob(RUNS_OF_A_SWEEP))
    if not runs:
        raise CommandError(f"{path} is a folder without results of a sweep", exit_code=2)
    return runs


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
