"""A real ``vllm serve demo`` for tests: started on a free loopback port, ended with everything that belongs to it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType

import httpx
import psutil

READY_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DemoServer:
    """``with DemoServer(...) as server``: ready when entered, and gone, children too, when left."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the server)
        command = [sys.executable, "-m", "vllm_cli", "serve", "demo", "--port", str(self.port), *flags]
        environment = {**os.environ, **(env or {})}
        self.launched = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> "DemoServer":
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not come up:\n{self.log}")
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGTERM)
        self.kill()

    def stop(self, number: signal.Signals, seconds: float = 15.0) -> int:
        """Send a signal to the server process alone and wait for its end. Returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        """Whatever is left of the process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def metric(self, name: str) -> float:
        """Value of one metric (its samples added up) from /metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        samples = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        if not samples:
            raise KeyError(name)
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def all_gone(processes: list[psutil.Process], seconds: float = 5.0) -> bool:
    """Whether every one of the processes ends within the time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
