"""Where the answers of a batch go when all are there: to a file, in one step, or to a URL."""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from vllm_engine.errors import ConfigError
from vllm_server.batch.errors import BatchFileError, reason_of
from vllm_server.batch.journal import Journal, JournalPlace
from vllm_server.batch.url import is_url, shown_url


class BatchOutput(Protocol):
    """An output. ``name`` is what messages call it, ``place`` where its journal stands until it is delivered."""

    name: str
    place: JournalPlace

    async def deliver(self, journal: Journal) -> None:
        """Make the journal the output. It is gone afterwards; when that fails, it stays.

        Raises:
            BatchFileError: when the output cannot be written.
        """


def open_output(path: str, tmp_dir: str | None, *, not_over: str) -> BatchOutput:
    """The output ``path``, a file or a URL, which must not be the file ``not_over``; see the two classes."""
    return UrlOutput(path, tmp_dir) if is_url(path) else FileOutput(path, tmp_dir, not_over=not_over)


class FileOutput:
    """A file. An older one is replaced when all answers are there."""

    def __init__(self, path: str, tmp_dir: str | None = None, *, not_over: str) -> None:
        """The journal stands in ``tmp_dir``, or beside the output.

        Raises:
            ConfigError: when the file could not be written, as far as that can be known before.
        """
        self.name = path
        # The file that a link leads to is replaced, not the link.
        self._target = Path(os.path.realpath(path))
        reason = self._unwritable(path, not_over)
        if reason is not None:
            raise ConfigError(f"output_file: cannot write to {path}: {reason}", field="output_file")
        if tmp_dir is None:
            self.place = JournalPlace(self._target.parent, self._target.name, "output_file")
        else:
            self.place = _place_in(Path(tmp_dir), self._target.name, str(self._target))

    async def deliver(self, journal: Journal) -> None:
        """Give the journal the output's name."""
        journal.sync()
        try:
            try:
                os.replace(journal.path, self._target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._move_over(journal.path)
        except OSError as error:
            raise BatchFileError(f"cannot write {self._target}: {reason_of(error)}") from error

    def _move_over(self, journal: Path) -> None:
        """From another file system: a copy beside the output first, so that it, too, appears in one step."""
        beside = self._target.with_name(f"{self._target.name}.copy")
        try:
            shutil.copyfile(journal, beside, follow_symlinks=False)
            os.replace(beside, self._target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        journal.unlink()

    def _unwritable(self, path: str, not_over: str) -> str | None:
        """Why the output could not be replaced, as far as that can be known before."""
        folder = self._target.parent
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return "it is not a regular file"
            if not is_url(not_over) and os.path.samefile(self._target, not_over):
                return "it is the input"
        except FileNotFoundError:
            if not folder.is_dir():
                return f"there is no folder {folder}"
        except (OSError, ValueError) as error:
            return reason_of(error)
        return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


class UrlOutput:
    """A URL, to which the answers are sent by PUT."""

    def __init__(self, url: str, tmp_dir: str | None = None) -> None:
        """The journal stands in ``tmp_dir``, or in a folder of this user among the system's temporary files.

        Raises:
            ConfigError: when that folder is not there, or is not the user's.
        """
        self.name = shown_url(url)
        self._url = url
        stem = re.sub(r"[^\w.-]+", "_", urlsplit(url).path.rpartition("/")[2], flags=re.ASCII)[:80] or "output"
        folder = _own_folder() if tmp_dir is None else Path(tmp_dir)
        # A signature in the query is new with each run, and the output the same.
        self.place = _place_in(folder, stem, self.name)

    async def deliver(self, journal: Journal) -> None:
        """Send the journal, and delete it."""
        from vllm_server.batch.transfer import upload

        await upload(journal.path, self._url)
        try:
            journal.path.unlink()
        except OSError as error:
            raise BatchFileError(f"cannot delete {journal.path}: {reason_of(error)}") from error


def _place_in(folder: Path, stem: str, output: str) -> JournalPlace:
    """A place in a folder that may hold the journals of other outputs with the same name."""
    return JournalPlace(folder, f"{stem}.{hashlib.sha256(os.fsencode(output)).hexdigest()[:8]}", "output_tmp_dir")


def _own_folder() -> Path:
    """A folder that is the same in each run, and that nobody else can enter or have prepared."""
    folder = Path(tempfile.gettempdir()) / f"vllm-run-batch-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"output_tmp_dir is needed: cannot use {folder}: {reason_of(error)}", field="output_tmp_dir"
        ) from error
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise ConfigError(
            f"output_tmp_dir is needed: others may write to {folder}, or it is theirs", field="output_tmp_dir"
        )
    return folder
