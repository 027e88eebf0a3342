"""``vllm serve`` with the scripted engine, as a process of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def without_phases(log: str) -> list[str]:
    """Lines of a log but for those that say how long a phase of the start-up took."""
    return [line for line in log.splitlines() if "start-up: " not in line]


class Process:
    """A running ``fake_serve``, read line by line."""

    def __init__(self, *flags: str, listen: tuple[str, ...] = ("--port", "0"), **script: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.fake_serve", "demo", *listen, *flags],
            cwd=ROOT,
            env={**os.environ, "FAKE": json.dumps(script), "VLLM_LOGGING_LEVEL": "INFO"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.log: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.log)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            lines.append(line.rstrip("\n"))

    def wait_for(self, start: str) -> str:
        """The first line of standard output that starts so."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.lines:
                if line.startswith(start):
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no line {start!r} in {self.lines} {self.log}")

    @property
    def url(self) -> str:
        return self.wait_for("ready").rsplit(" ", 1)[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Exit code, once the process has ended."""
        code = self.process.wait(timeout=20)
        for reader in self._readers:
            reader.join(timeout=5)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
