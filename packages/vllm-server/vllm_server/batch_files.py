"""The files of a batch: lines that are read one by one, and answers that get their name when all are there."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from vllm_engine.errors import ConfigError, VllmError

MAX_LINE_BYTES = 65 * 2**20
"""A longer line is refused without being held; a body of a route has at most 64 MiB."""

_BLOCK = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BatchFileError(VllmError):
    """A file could no longer be read or written while the batch ran."""


class BatchInput:
    """The lines of the input, read as they are asked for."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises ``ConfigError`` when it is none, or may not be read."""
        self.path = path
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ConfigError(f"input_file: {path} is not a regular file", field="input_file")
            self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        except (OSError, ValueError) as error:
            raise ConfigError(f"input_file: cannot read {path}: {_reason(error)}", field="input_file") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and text of each line that is not blank; None for the text of one above ``MAX_LINE_BYTES``.

        Raises:
            BatchFileError: when reading fails.
        """
        number = 0
        try:
            while line := self._file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = self._file.readline(_BLOCK)
                    yield number, None
                    continue
                text = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
                if text:
                    yield number, text
        except OSError as error:
            raise BatchFileError(f"cannot read {self.path}: {_reason(error)}") from error

    def count_lines(self) -> int:
        """About how many lines there are: blank ones count. Reads the file once."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
        return 0


class BatchOutput:
    """The answers: written under a name of their own, ``<output>.<8 digits>.partial``, and renamed by ``commit``.

    What was written stays there when the run ends early, so that no answer is lost; an empty file does not.
    """

    def __init__(self, path: str, folder: str | None = None, *, not_over: str) -> None:
        """Create the partial file in ``folder``, or beside the output ``path``, which must not be ``not_over``.

        Raises:
            ConfigError: when it cannot be created, or could not be renamed to ``path`` later on.
        """
        self.path = path
        # The file that a link leads to is replaced, not the link.
        self._target = Path(os.path.realpath(path))
        reason = self._unwritable(path, not_over)
        if reason is not None:
            raise ConfigError(f"output_file: cannot write to {path}: {reason}", field="output_file")
        self.partial = self._name_in(self._target.parent if folder is None else Path(folder))
        try:
            self._file = open(self.partial, "xb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            name = "output_file" if folder is None else "output_tmp_dir"
            where = path if folder is None else folder
            raise ConfigError(f"{name}: cannot write to {where}: {_reason(error)}", field=name) from error
        self._committed = False
        self._is_empty = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk was told of by the write that met it
            self._file.close()
        if not self._committed and self._is_empty:
            with contextlib.suppress(OSError):
                self.partial.unlink()

    def write(self, line: bytes) -> None:
        """Add a line. Raises ``BatchFileError`` when it cannot be written."""
        try:
            self._file.write(line)
            self._file.flush()  # so that nothing is lost, however the program ends
        except OSError as error:
            raise BatchFileError(f"cannot write {self.partial}: {_reason(error)}") from error
        self._is_empty = False

    def commit(self) -> None:
        """Give the output its name, in one step. Raises ``BatchFileError`` when that fails."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            try:
                os.replace(self.partial, self._target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._move_over()
        except OSError as error:
            raise BatchFileError(f"cannot write {self._target}: {_reason(error)}") from error
        self._committed = True

    def _move_over(self) -> None:
        """From another file system: a copy beside the output first, so that it, too, appears in one step."""
        beside = self._name_in(self._target.parent)
        try:
            shutil.copyfile(self.partial, beside)
            os.replace(beside, self._target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        self.partial.unlink()

    def _name_in(self, folder: Path) -> Path:
        return folder / f"{self._target.name}.{secrets.token_hex(4)}.partial"

    def _unwritable(self, path: str, not_over: str) -> str | None:
        """Why the output could not be replaced, as far as that can be known before."""
        folder = self._target.parent
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return "it is not a regular file"
            if os.path.samefile(self._target, not_over):
                return "it is the input"
        except FileNotFoundError:
            if not folder.is_dir():
                return f"there is no folder {folder}"
        except (OSError, ValueError) as error:
            return _reason(error)
        return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
