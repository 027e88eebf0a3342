"""Files of JSON objects, one a line or as one list: each entry knows its line, and says so when it is wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError

MOST_TOKENS = 10_000_000
"""Longer than any model's context."""
_LARGEST = 1e18
_UNREADABLE = (ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a file. What it should hold and does not is a ``CommandError`` (exit code 2) with its place."""

    file: Path
    line: int
    """The number of the line where it begins, from 1 on."""
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field that must be a text with something in it."""
        value = self._required(name)
        if not isinstance(value, str) or not value:
            raise self.wrong(f"{name!r} is no text, or an empty one")
        return value

    def length(self, name: str, least: int = 1) -> int:
        """A field that must be a number of tokens."""
        value = self._required(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_TOKENS:
            raise self.wrong(f"{name!r} is no whole number from {least} to {MOST_TOKENS}")
        return value

    def number(self, name: str) -> float:
        """A field that must be a finite number."""
        value = self._required(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
            raise self.wrong(f"{name!r} is no number")
        return float(value)

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A field that must be a list of objects."""
        value = self._required(name)
        if not isinstance(value, list) or not all(isinstance(element, dict) for element in value):
            raise self.wrong(f"{name!r} is no list of objects")
        return value

    def wrong(self, what: str) -> CommandError:
        """The error that names its file and line."""
        return CommandError(f"{self.file}, line {self.line}: {what}", exit_code=2)

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            raise self.wrong(f"there is no {name!r}")
        return self.fields[name]


def read_lines(file: Path) -> Iterator[Entry]:
    """The objects of a file that has one in each line; blank lines are passed over.

    Raises:
        CommandError: (exit code 2) the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield _entry(file, number, _parsed(file, number, line))


def read_list_or_lines(file: Path) -> Iterator[Entry]:
    """The same, where the file may be one JSON list of objects instead."""
    text = read_text(file)
    if not text.lstrip().startswith("["):
        yield from read_lines(file)
        return
    decode = json.JSONDecoder().raw_decode
    at, line = text.index("[") + 1, 1
    counted = 0
    closed = False
    while not closed:
        at = _after_blanks(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text.startswith("]", at):
            at += 1
            break
        try:
            value, at = decode(text, at)
        except _UNREADABLE as error:
            raise _no_json(file, getattr(error, "lineno", line), error) from error
        yield _entry(file, line, value)
        at = _after_blanks(text, at)
        if text[at : at + 1] not in (",", "]"):
            line += text.count("\n", counted, at)
            raise CommandError(f"{file}, line {line}: the list goes on with neither a comma nor its end", exit_code=2)
        closed = text[at] == "]"
        at += 1
    if text[at:].strip():
        raise CommandError(f"{file}: more follows the end of the list", exit_code=2)


def read_text(file: Path) -> str:
    """What a file holds.

    Raises:
        CommandError: (exit code 2) it cannot be read, or is no UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandError(f"--dataset-path {file}: {error.strerror or error}", exit_code=2) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"--dataset-path {file}: it is no UTF-8 text: {error.reason}", exit_code=2) from error


def _parsed(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except _UNREADABLE as error:
        raise _no_json(file, number, error) from error


def _no_json(file: Path, line: int, error: Exception) -> CommandError:
    what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
    return CommandError(f"{file}, line {line}: this is no JSON: {what}", exit_code=2)


def _entry(file: Path, line: int, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise CommandError(f"{file}, line {line}: this is no JSON object", exit_code=2)
    return Entry(file, line, value)


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at
