"""The answers of a batch that is not complete: a file that the next run takes up where this one stopped.

Its name says whose answers it holds: ``<stem>.<digest of the input>-<digest of the settings>.partial``. So there is
nothing beside it that could be lost or contradict it, and a run finds the answers to another input for what they are.
Every answer is one ``write`` of a whole line, in the order of the input; a line that the end of a run has torn is cut
off, and the number of whole lines is the number of lines of the input that are done.
"""

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from vllm_engine.errors import ConfigError
from vllm_server.batch.errors import BatchFileError, reason_of
from vllm_server.batch.input import NumberedLine
from vllm_server.batch.request import custom_id_of

_INPUT_DIGITS, _SETTINGS_DIGITS = 12, 8
_LINES_AT_A_TIME = 512
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where the journal of an output stands. ``field`` is the setting to blame when nothing can be written there."""

    folder: Path
    stem: str
    field: str


@dataclass(frozen=True, slots=True)
class RunKey:
    """What answers depend on, as digests: the input, and the settings that shape an answer."""

    input: str
    settings: str

    def __str__(self) -> str:
        return f"{self.input[:_INPUT_DIGITS]}-{self.settings[:_SETTINGS_DIGITS]}"


class _Written(msgspec.Struct):
    """As much of a line of the output as resuming must know."""

    custom_id: str | None
    error: dict[str, Any] | None


class Journal:
    """An open journal, which no other run can have open. ``num_answers`` and ``num_failed`` count what is in it."""

    def __init__(self, place: JournalPlace, key: RunKey) -> None:
        """Open the journal of a run, or create it.

        Raises:
            ConfigError: when it cannot be created, another run has it open, or there are answers to something else.
        """
        self.num_answers = 0
        self.num_failed = 0
        self.path = place.folder / f"{place.stem}.{key}.partial"
        try:
            self._refuse_others(place, key)
            self._file = self._open(place)
        except OSError as error:
            raise ConfigError(
                f"{place.field}: cannot write to {place.folder}: {reason_of(error)}", field=place.field
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            # Before the lock is given back, so that it is not another run's file that goes.
            if self._is_ours(self._file) and not os.fstat(self._file.fileno()).st_size:
                self.path.unlink()
        with contextlib.suppress(OSError):  # a full disk was told of by the write that met it
            self._file.close()

    async def resume(self, lines: Iterator[NumberedLine]) -> None:
        """Take up the answers that are there; as many of ``lines``, those of the input, are taken off.

        Raises:
            ConfigError: when an answer is not one to its line: someone has edited the journal.
            BatchFileError: when a file cannot be read or written.
        """
        size = 0
        try:
            self._file.seek(0)
            while (line := self._file.readline()).endswith(b"\n"):
                written = _read(line)
                asked = next(lines, None)
                if written is None or asked is None or written.custom_id != custom_id_of(asked[1]):
                    raise ConfigError(
                        f"line {self.num_answers + 1} of {self.path} is no answer to the line of the input that is "
                        "due: someone has changed the file; delete it to begin with nothing",
                        field="output_file",
                    )
                size += len(line)
                self._count(written.error is not None)
                if self.num_answers % _LINES_AT_A_TIME == 0:
                    await asyncio.sleep(0)
            self._file.truncate(size)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, line: bytes, *, failed: bool) -> None:
        """Add a line. Raises ``BatchFileError`` when it cannot be written."""
        try:
            self._file.write(line)
            self._file.flush()  # so that nothing is lost, however the program ends
        except OSError as error:
            raise self._failure(error) from error
        self._count(failed)

    def sync(self) -> None:
        """Wait until the disk has all of it. Raises ``BatchFileError`` when that fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def _count(self, failed: bool) -> None:
        self.num_answers += 1
        self.num_failed += failed

    def _failure(self, error: OSError) -> BatchFileError:
        return BatchFileError(f"cannot write {self.path}: {reason_of(error)}")

    def _open(self, place: JournalPlace) -> IO[bytes]:
        """The file, locked. A run that ends gives its journal another name, so the lock may come too late."""
        while True:
            descriptor = os.open(self.path, _FLAGS, 0o666)
            file = open(descriptor, "r+b")  # noqa: SIM115 - closed by __exit__
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ConfigError(f"{place.field}: another run is writing {self.path}", field=place.field) from None
            except OSError:
                pass  # a file system without locks
            if self._is_ours(file):
                return file
            file.close()

    def _is_ours(self, file: IO[bytes]) -> bool:
        """Whether ``file`` is still the one under the journal's name."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def _refuse_others(self, place: JournalPlace, key: RunKey) -> None:
        """Answers to another input under this output's name: whoever wants them must not lose or mix them unawares."""
        form = re.compile(
            re.escape(place.stem) + rf"\.([0-9a-f]{{{_INPUT_DIGITS}}})-([0-9a-f]{{{_SETTINGS_DIGITS}}})\.partial"
        )
        names = os.listdir(place.folder) if place.folder.is_dir() else []
        for name in sorted(names):
            found = form.fullmatch(name)
            if found is None or name == self.path.name or _size(place.folder / name) == 0:
                continue
            same_input = key.input.startswith(found[1])
            what = (
                "the same input, but of another model or other settings that shape an answer"
                if same_input
                else "another input than this one"
            )
            raise ConfigError(
                f"{place.folder / name} has answers to {what}; delete it to begin with nothing, or name another output",
                field="output_file" if same_input else "input_file",
            )


def _read(line: bytes) -> _Written | None:
    """What a line says; None for one that was never written so."""
    try:
        return msgspec.json.decode(line, type=_Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
