"""``vllm serve demo`` as a process of its own, and what it holds of the system."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
SERVE = (
    "import argparse, sys; from vllm_server.serve import add_arguments, run;"
    "parser = argparse.ArgumentParser(); add_arguments(parser); sys.exit(run(parser.parse_args()))"
)


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition. Returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - start


class DemoProcess:
    """A server with its engine process; sockets and temporary files go to a folder of its own."""

    def __init__(self, folder: Path, *flags: str, prelude: str = "", **environment: str) -> None:
        """``prelude``: Python that the process runs first."""
        # A socket's name must be short, and the folder of a test is not.
        self.folder = Path(tempfile.mkdtemp(prefix="demo-"))
        self.log = folder / "log.txt"
        self.shared_memory = set(os.listdir("/dev/shm"))
        program = f"{prelude}\n{SERVE}"
        port = () if "--uds" in flags else ("--port", "0")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "demo", *port, "--num-gpu-blocks-override", "512", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_RPC_BASE_PATH": str(self.folder), **environment},
                cwd=ROOT,
            )
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        ready = self.process.stdout.readline()
        if not ready.startswith("ready"):
            raise RuntimeError(self.log.read_text())
        self.url = ready.split()[-1]
        self.headers: dict[str, str] = {}
        children = psutil.Process(self.process.pid).children()
        (self.core,) = [child for child in children if "vllm_engine.core.process" in child.cmdline()]
        self.api_processes = [child for child in children if "vllm_server.running.api_process" in child.cmdline()]

    def status(self, path: str) -> int:
        return httpx.get(f"{self.url}{path}", headers=self.headers, timeout=5).status_code

    def left_over(self) -> list[str]:
        """Processes, sockets, files and shared memory that are still there after the end."""
        pids = [self.process.pid, self.core.pid, *(process.pid for process in self.api_processes)]
        left = [f"process {pid}" for pid in pids if _runs(pid)]
        left += [str(path) for path in self.folder.iterdir()]
        return left + sorted(set(os.listdir("/dev/shm")) - self.shared_memory)

    def clean_up(self) -> None:
        for process in (*self.api_processes, self.core, self.process):
            if _runs(process.pid):
                process.kill()
        self.process.wait(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.unlink() if not path.is_dir() else path.rmdir()
        self.folder.rmdir()


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class StreamReader(threading.Thread):
    """A client of a stream of ``max_tokens`` tokens: its lines as they come."""

    def __init__(self, url: str, max_tokens: int, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__()
        self.headers = headers
        self.url = url
        self.body = {"prompt": "Hello", "max_tokens": max_tokens, "ignore_eos": True, "stream": True, **fields}
        self.lines: list[str] = []
        self.begun = threading.Event()
        self.broken = False
        self._closed = False
        self.start()

    def close(self) -> None:
        """Go away before the end."""
        self._closed = True

    def run(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=self.body, headers=self.headers, timeout=60
            ) as response:
                for line in response.iter_lines():
                    if self._closed:
                        return
                    if line:
                        self.lines.append(line)
                        self.begun.set()
        except httpx.HTTPError:
            self.broken = True
