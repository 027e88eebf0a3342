"""How long a server takes from launch to ready, and to the first token of its first request."""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from vllm_bench.measure.start_phases import StartPhases, in_a_row
from vllm_bench.server_process import ServerProcess
from vllm_bench.startup_probe import StartupProbe

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class StartupTiming:
    """One start. Seconds from just before the launch of the process, by ``time.perf_counter``."""

    healthy_seconds: float
    """Until ``/health`` answered 200."""
    first_token_seconds: float
    """Until the first token of a streamed answer, asked for as soon as the server was healthy."""
    phases: StartPhases
    """Where that time went."""


def measure_start(command: list[str], probe: StartupProbe, *, timeout: float) -> StartupTiming:
    """Start the server that ``command`` launches where ``probe`` asks, time it and end it.

    Raises:
        CommandError: it ended, or was not ready within ``timeout`` seconds, or gave no answer.
    """
    with ServerProcess(command) as server:
        deadline = server.launched + timeout
        while not probe.is_healthy():
            server.check(deadline)
            time.sleep(_POLL_SECONDS)
        healthy = time.perf_counter() - server.launched
        probe.wait_for_token()
        first_token = time.perf_counter() - server.launched
        return StartupTiming(healthy, first_token, in_a_row(server.phases(), healthy, first_token))


def startup_figures(timings: list[StartupTiming]) -> dict[str, Any]:
    """Every run, and median, minimum and maximum of all, in seconds."""
    return {
        "healthy_seconds": _spread([timing.healthy_seconds for timing in timings]),
        "first_token_seconds": _spread([timing.first_token_seconds for timing in timings]),
        "phases": _spreads([timing.phases.path for timing in timings]),
        "beside": _spreads([timing.phases.beside for timing in timings]),
        "unnamed_seconds": _spread([timing.phases.unnamed for timing in timings]),
        "runs": [asdict(timing) for timing in timings],
    }


def startup_lines(figures: dict[str, Any]) -> list[str]:
    """The same figures for reading."""
    tables = {
        "seconds from launch": {
            "ready (/health)": figures["healthy_seconds"],
            "first token": figures["first_token_seconds"],
        },
        "seconds of each phase": figures["phases"],
        "beside these": figures["beside"],
    }
    width = 2 + max(len(title) for table in tables.values() for title in table)
    width = max(width, *(len(title) for title in tables))
    lines: list[str] = []
    for title, table in tables.items():
        if table:
            lines += [] if not lines else [""]
            lines.append(f"{title:<{width}}    median       min       max")
            lines += [_line(f"  {name}", spread, width) for name, spread in table.items()]
    together = sum(spread["median"] for spread in figures["phases"].values())
    share = together / figures["first_token_seconds"]["median"]
    return [*lines, "", f"the medians of the phases add up to {together:.3f} s, {share:.1%} of the first token's"]


def _line(title: str, spread: dict[str, float], width: int) -> str:
    return f"{title:<{width}}{spread['median']:>10.3f}{spread['min']:>10.3f}{spread['max']:>10.3f}"


def _spreads(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """A phase that a start had not took none of its time, else what one start alone had would count in full."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _spread([run.get(name, 0.0) for run in runs]) for name in names}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
