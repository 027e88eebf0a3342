"""How long a server takes from launch to ready, and to the first token of its first request."""

import http.client
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from vllm_bench.server_process import ServerProcess
from vllm_cli.client import Client
from vllm_cli.command import CommandError

_POLL_SECONDS = 0.01
_QUESTION = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, slots=True)
class StartupTiming:
    """One start. Seconds from just before the launch of the process, by ``time.perf_counter``."""

    healthy_seconds: float
    """Until ``/health`` answered 200."""
    first_token_seconds: float
    """Until the first text of a streamed chat answer, asked for as soon as the server was healthy."""
    phases: dict[str, float]
    """Seconds of each phase that the server's log names."""


def measure_start(command_for: Callable[[int], list[str]], port: int, *, timeout: float) -> StartupTiming:
    """Start the server that ``command_for(port)`` launches on the loopback address, time it and end it.

    Raises:
        CommandError: it ended, or was not ready within ``timeout`` seconds, or gave no answer.
    """
    with ServerProcess(command_for(port)) as server:
        deadline = server.launched + timeout
        while not _healthy(port):
            server.check(deadline)
            time.sleep(_POLL_SECONDS)
        healthy = time.perf_counter()
        with Client(f"http://127.0.0.1:{port}/v1") as client:
            answer = client.chat(client.first_model(), _QUESTION)
            if next(answer, None) is None:
                raise CommandError("the server's first answer has no text")
            first_token = time.perf_counter()
            answer.close()
        return StartupTiming(healthy - server.launched, first_token - server.launched, server.phases())


def startup_figures(timings: list[StartupTiming]) -> dict[str, Any]:
    """Every run, and median, minimum and maximum of all, in seconds."""
    measured = {
        "healthy_seconds": [timing.healthy_seconds for timing in timings],
        "first_token_seconds": [timing.first_token_seconds for timing in timings],
    }
    names = dict.fromkeys(name for timing in timings for name in timing.phases)
    phases = {name: [timing.phases[name] for timing in timings if name in timing.phases] for name in names}
    return {
        **{name: _spread(values) for name, values in measured.items()},
        "phases": {name: _spread(values) for name, values in phases.items()},
        "runs": [asdict(timing) for timing in timings],
    }


def startup_lines(figures: dict[str, Any]) -> list[str]:
    """The same figures for reading."""
    rows = [("ready (/health)", figures["healthy_seconds"]), ("first token", figures["first_token_seconds"])]
    rows += [(f"  {name}", spread) for name, spread in figures["phases"].items()]
    width = max(len("seconds from launch"), *(len(title) for title, _ in rows))
    lines = [f"{'seconds from launch':<{width}}    median       min       max"]
    for number, (title, spread) in enumerate(rows):
        if number == 2:
            lines += ["", "phases, by the server's log"]
        lines.append(f"{title:<{width}}{spread['median']:>10.3f}{spread['min']:>10.3f}{spread['max']:>10.3f}")
    return lines


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
