"""The input of a batch: lines that are read one by one, as they are asked for."""

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Self

from vllm_engine.errors import ConfigError
from vllm_server.batch.errors import BatchFileError, reason_of

MAX_LINE_BYTES = 65 * 2**20
"""A longer line is refused without being held; a body of a route has at most 64 MiB."""

_BLOCK = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINES_AT_A_TIME = 512
"""After so many lines a long reading lets the event loop see signals."""

NumberedLine = tuple[int, bytes | None]
"""Number and text of a line; None for the text of one above ``MAX_LINE_BYTES``."""


class BatchInput:
    """The lines of an open file. ``examine`` fills in ``digest`` and ``num_lines``."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        """``name`` is what messages call the file."""
        self.name = name
        self.digest = ""
        self.num_lines = 0
        self._file = file
        self._state = self._state_now()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    async def examine(self) -> None:
        """Read the file once: ``digest`` is the SHA-256 of its bytes, ``num_lines`` counts the lines not blank.

        Raises:
            BatchFileError: when reading fails.
        """
        digest = hashlib.sha256()
        self.num_lines = 0
        for _ in self._read(digest.update):
            self.num_lines += 1
            if self.num_lines % _LINES_AT_A_TIME == 0:
                await asyncio.sleep(0)
        self.digest = digest.hexdigest()

    def lines(self) -> Iterator[NumberedLine]:
        """Each line that is not blank, from the first on.

        Raises:
            BatchFileError: when reading fails, or the file is no longer what it was when it was opened.
        """
        return self._read(lambda _: None)

    def _read(self, see: Callable[[bytes], object]) -> Iterator[NumberedLine]:
        """The lines; ``see`` is given every byte."""
        number = 0
        try:
            self._file.seek(0)
            while line := self._file.readline(MAX_LINE_BYTES + 1):
                see(line)
                number += 1
                # Answers so far belong to the lines as they were; no later run could take them up.
                if self._state_now() != self._state:
                    raise BatchFileError(f"{self.name} was changed while it was read")
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = self._file.readline(_BLOCK)
                        see(line)
                    yield number, None
                    continue
                text = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
                if text:
                    yield number, text
        except OSError as error:
            raise BatchFileError(f"cannot read {self.name}: {reason_of(error)}") from error

    def _state_now(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns


def open_input(path: str) -> BatchInput:
    """The file ``path`` as the input. Raises ``ConfigError`` when it is none, or may not be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"input_file: {path} is not a regular file", field="input_file")
        return BatchInput(path, open(path, "rb"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"input_file: cannot read {path}: {reason_of(error)}", field="input_file") from error
