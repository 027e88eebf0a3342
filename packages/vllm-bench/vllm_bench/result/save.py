"""Results as files."""

import json
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError


def default_name(result: dict[str, Any]) -> str:
    """A file name made of model, load and date."""
    label = _plain(str(result["label"] or result["backend"]))
    limit = result["max_concurrency"]
    load = f"{result['request_rate']}qps" + (f"-concurrency{limit}" if limit is not None else "")
    return f"{label}-{load}-{_plain(str(result['model_id']))}-{result['date']}.json"


def save(result: dict[str, Any], path: Path) -> None:
    """Write ``result`` as JSON.

    Raises:
        CommandError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the result cannot be saved: {error}") from error


def _plain(text: str) -> str:
    """``text`` as a part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in text)
