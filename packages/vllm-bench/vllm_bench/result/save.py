"""Results as files: one line of JSON each, so that several may stand in one file."""

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError


def default_name(result: dict[str, Any]) -> str:
    """A file name made of model, load and date."""
    label = _plain(str(result["label"] or result["backend"]))
    limit = result["max_concurrency"]
    load = f"{result['request_rate']}qps" + (f"-concurrency{limit}" if limit is not None else "")
    return f"{label}-{load}-{_plain(str(result['model_id']))}-{result['date']}.json"


def check_place(path: Path) -> None:
    """Make the folder of a file that will be saved, and try whether it takes one: known before anything is measured.

    Raises:
        CommandError: the file could not be written (exit code 2).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not path.exists() or path.is_file():
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise CommandError(f"no result can be saved in {path}: {error.strerror}", exit_code=2) from error


def save(result: dict[str, Any], path: Path, *, append: bool = False) -> None:
    """Write ``result`` as a line of JSON; a reader never sees half of it.

    Args:
        append: after what the file holds, if there is one.

    Raises:
        CommandError: the file cannot be written.
    """
    try:
        before = path.read_text(encoding="utf-8") if append and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the result cannot be saved: {error}") from error
    if before and not before.endswith("\n"):
        before += "\n"
    save_text(before + json.dumps(result) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Write ``text`` to a file, whose folder is made; a reader never sees half of it.

    Raises:
        CommandError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except OSError as error:
        raise CommandError(f"the result cannot be saved: {error}") from error


def _replace(path: Path, text: str) -> None:
    """Put ``text`` in the place of the file, whole or not at all; what is no regular file is written to as it is."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # a link stays one
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _plain(text: str) -> str:
    """``text`` as a part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in text)
