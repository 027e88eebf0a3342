"""A child process that loads a program once and then does work on command, asleep in between."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .machine import OthersLoad

SCRIPTS = Path(__file__).with_name("drivers")
_END_SECONDS = 15.0
_LAST_LINES = 12


class DriverError(Exception):
    """The program refused the work, died, or took too long."""


class Driver:
    """Runs ``command``, which speaks JSON lines: a command on its standard input, an answer on its standard output.

    Its whole process group is stopped while it has nothing to do: idle threads that spin would take time from whoever
    is measured.

    Args:
        command: what to launch.
        environment: variables beside our own.
        log: file for everything else that it writes.
        timeout: seconds for one answer.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, timeout: float = 1200.0) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._timeout = timeout
        self._unread = b""
        self.others = 0.0
        """Most cores that other processes kept busy during one answer."""

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the word to end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS if kind is None else 0.0)
        self._signal(signal.SIGKILL)  # whatever of the group is left
        self._process.wait()
        self._process.stdout.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let the program run until it has answered.

        Raises:
            DriverError: it answered with an error, ended, or gave no answer in time.
        """
        self._signal(signal.SIGCONT)
        try:
            others = OthersLoad(self._process.pid)
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line())
            if do != "load":
                self.others = max(self.others, others.cores())
        finally:
            self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise DriverError(answer["error"])
        return answer

    def _line(self) -> bytes:
        deadline = time.perf_counter() + self._timeout
        stdout = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.perf_counter()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise DriverError(f"no answer within {self._timeout:.0f} s")
            chunk = os.read(stdout, 65536)
            if not chunk:
                raise DriverError(f"it ended; its last words:\n{self._last_words()}")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (none)"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
