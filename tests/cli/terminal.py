"""A program on a terminal of its own (a pty), typed to and read from by a test."""

import os
import pty
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

# The shell opens the terminal as the leader of a new session, which makes it the one that Ctrl-C reaches.
_ON_TERMINAL = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1']


class Terminal:
    """``python -m vllm_cli <arguments>`` on a pty, with this Python or another."""

    def __init__(self, *arguments: str, python: str = sys.executable) -> None:
        self._master, slave = pty.openpty()
        self.text = ""
        command = [*_ON_TERMINAL, os.ttyname(slave), python, "-m", "vllm_cli", *arguments]
        environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(command, start_new_session=True, env=environment, cwd="/")
        # Kept open until the program's end, lest the master reads an error before the program opens its side.
        self._slave = slave

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press keys; ``\\x03`` is Ctrl-C and ``\\x04`` Ctrl-D."""
        os.write(self._master, text.encode())

    def type_until(self, keys: str, expected: str, *, seconds: float = 20.0) -> None:
        """Press ``keys`` again and again until ``expected`` appears.

        For Ctrl-C at a prompt: Python's ``input`` misses one that comes just before it begins to wait, and notices it
        with the next key.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.type(keys)
            try:
                self.wait_for(expected, seconds=0.5)
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def wait_for(self, expected: str, *, seconds: float = 20.0) -> str:
        """Read until ``expected`` appears; returns everything up to its end and forgets it."""
        deadline = time.monotonic() + seconds
        while expected not in self.text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                raise AssertionError(f"{expected!r} did not appear in {self.text!r}")
            self.text += os.read(self._master, 4096).decode(errors="replace")
        end = self.text.index(expected) + len(expected)
        seen, self.text = self.text[:end], self.text[end:]
        return seen

    def exit_code(self, *, seconds: float = 20.0) -> int:
        """Wait for the program's end."""
        return self.process.wait(timeout=seconds)
