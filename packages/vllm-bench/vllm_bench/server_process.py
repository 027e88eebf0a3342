"""A server started for a measurement, in a process group of its own, and surely ended."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from vllm_bench.measure.start_phases import LoggedPhase
from vllm_cli.command import CommandError

_PHASE = re.compile(r"start-up: (.+?) took ([0-9.]+) s")
_TERM_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LAST_LINES = 15


class ServerProcess:
    """Runs ``command`` until the block ends; then the whole process group is told to stop, and after 10 s killed.

    Args:
        command: what to launch.
        environment: variables beside our own.
        dies_with_us: it is told to stop also when this thread ends without a chance to say so, as by ``kill -9``.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str] | None = None, *, dies_with_us: bool = False
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._before = _stop_with_parent() if dies_with_us else None

    def __enter__(self) -> Self:
        self._lines: list[tuple[float, str]] = []
        self.launched = time.perf_counter()
        """``time.perf_counter`` just before the launch."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=self._environment,
            preexec_fn=self._before,
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERM_SECONDS)
        # Whatever of the group outlived its leader.
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._reader.join(_TERM_SECONDS)

    def _read(self) -> None:
        """Keep the log, each line with the moment when it came."""
        pipe = self._process.stdout
        if pipe is not None:
            with pipe:
                for line in pipe:
                    self._lines.append((time.perf_counter(), line.decode(errors="replace")))

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    @property
    def pid(self) -> int:
        """Process id, which is its group's, too."""
        return self._process.pid

    def log(self) -> str:
        """Everything that the server has written."""
        return "".join(line for _, line in self._lines)

    def phases(self) -> list[LoggedPhase]:
        """Each start-up phase, by the server's own log lines, in their order."""
        found = [(moment, _PHASE.search(line)) for moment, line in self._lines]
        return [
            LoggedPhase(match[1], float(match[2]), moment - self.launched)
            for moment, match in found
            if match is not None
        ]

    def check(self, deadline: float) -> None:
        """Raise ``CommandError``, with the end of the log, when the process has ended or ``deadline`` has passed."""
        code = self._process.poll()
        if code is None and time.perf_counter() < deadline:
            return
        if code is not None:
            self._reader.join(_TERM_SECONDS)  # its last words may still be in the pipe
        what = "did not become ready in time" if code is None else f"ended with code {code} before it was ready"
        tail = "\n".join(f"  {line}" for line in self.log().splitlines()[-_LAST_LINES:])
        raise CommandError(f"the server {what}; its last words:\n{tail or '  (none)'}")


def free_port() -> int:
    """A TCP port of the loopback address that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _stop_with_parent() -> Callable[[], None]:
    """What the child calls before it becomes the server. The library is found here: a child may not load any."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))

    return ask
