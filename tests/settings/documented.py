"""The documented surface, from ``spec/*.json``: facts taken from the product's documents, independent of our code."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEWER = {"custom_histogram_buckets", "device", "max_num_queued_reqs", "max_num_queued_tokens"}
"""Arguments of the engine that only other documents have."""
OWN_CHOICES = {"scheduling_policy": {"fair"}}
"""Choices that we have beside the documented ones."""

_FOLDER = Path(__file__).parent / "spec"


@dataclass(frozen=True)
class Documented:
    """One flag as the documents have it."""

    flag: str
    short: list[str]
    negatable: bool
    type: str
    choices: list[Any]
    default: Any

    @property
    def name(self) -> str:
        return self.flag[2:].replace("-", "_")

    def __str__(self) -> str:
        return self.flag


def engine_arguments() -> list[Documented]:
    """The 194 arguments of the engine."""
    return _read("engine_args.json")


def older_arguments() -> list[Documented]:
    """What the earlier documents have beside them: the front end's options, and old ones of the engine."""
    return _read("serve_args_old.json")


def _read(name: str) -> list[Documented]:
    entries = json.loads((_FOLDER / name).read_text())
    return [
        Documented(
            entry["flag"],
            entry["short"],
            entry["negatable"],
            entry["type"],
            [None if choice == "None" else choice for choice in entry["choices"]],
            _default(entry["default"], entry["type"]),
        )
        for entry in entries
    ]


def _default(printed: str | None, kind: str) -> Any:
    """A default as a value; the documents print Python's spellings, also those of dataclasses, sets and enums."""
    if printed in (None, "None"):
        return None
    if printed == "MambaBackendEnum.TRITON":
        return "triton"
    if kind in ("int", "human-int", "float"):
        return float(printed) if kind == "float" else int(printed)
    if kind in ("str", "enum") and not printed.startswith('"'):
        return int(printed) if kind == "enum" and printed.isdigit() else printed
    if kind == "list" and printed.isdigit():
        return [int(printed)]
    return _value(ast.parse(re.sub(r"<[\w.]+: ('\w+')>", r"\1", printed) or '""', mode="eval").body)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "set":
            return []
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
