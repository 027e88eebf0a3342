"""Servers that are measured from outside: started, paused while it is not their turn, asked what time they took."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 400.0
RUN_SECONDS = 600.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{[^}]*\})? (?P<value>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A server that answers. ``pid`` is its first process, and the id of the group that all of them are in."""

    url: str
    pid: int
    api_key: str | None = None
    """For what needs one."""

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Stop all of its processes for the block: what spins while it waits would take time from another's turn."""
        os.killpg(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGCONT)

    def processes(self) -> dict[int, str]:
        """Its processes: id -> command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if os.getpgid(int(folder.name)) == self.pid:
                        found[int(folder.name)] = (
                            (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                        )
                except (OSError, UnicodeDecodeError):
                    continue  # it has just ended
        return found

    def metric(self, name: str) -> float:
        """A number of its metrics page, summed over its labels; 0 for one that is not there."""
        with urllib.request.urlopen(_request(f"{self.url}/metrics", self.api_key), timeout=5) as answer:
            samples = _SAMPLE.finditer(answer.read().decode())
        return sum(float(sample["value"]) for sample in samples if sample["name"] == name)


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


@contextmanager
def running(command: list[str], environment: dict[str, str], api_key: str | None = None) -> Iterator[Served]:
    """Run a server, whose command lacks nothing but ``--port``, until the block ends.

    Args:
        command: what to run.
        environment: variables beside our own.
        api_key: one that it takes, if it asks for any.

    Raises:
        RuntimeError: with its last words when it does not answer.
    """
    from vllm_bench.server_process import ServerProcess, free_port
    from vllm_cli.command import CommandError

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ServerProcess([*command, "--port", str(port)], {**environment, "HF_HUB_OFFLINE": "1"}) as process:
        deadline = time.perf_counter() + START_SECONDS
        while not _healthy(url, api_key):
            try:
                process.check(deadline)
            except CommandError as error:
                raise RuntimeError(str(error)) from error
            time.sleep(0.2)
        yield Served(url, process.pid, api_key)


def run_client(command: list[str]) -> None:
    """Run a benchmark to its end; raises ``RuntimeError`` with the end of its words if it fails."""
    with beside(command):
        pass


@contextmanager
def beside(command: list[str]) -> Iterator[None]:
    """A benchmark at work beside the block, which waits for its end; see ``run_client``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            yield
            process.wait(RUN_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            log.seek(0)
            last = "\n".join(log.read().splitlines()[-15:])
            raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}:\n{last}")


def our_command() -> list[str]:
    """How our ``vllm`` is called."""
    return [sys.executable, "-m", "vllm_cli"]


def _request(url: str, api_key: str | None) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})


def _healthy(url: str, api_key: str | None) -> bool:
    try:
        with urllib.request.urlopen(_request(f"{url}/health", api_key), timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
