"""How long the engine took to fall asleep and to wake up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from vllm_engine.metrics.histogram import Histogram
from vllm_server.telemetry.families import histogram_series, key_of
from vllm_server.telemetry.snapshot import Family

Operation = Literal["sleep", "release_kv_cache_memory", "wake_up"]
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)


class SleepMetrics:
    """Counts the operations of ``/sleep``, ``/release_kv_cache_memory`` and ``/wake_up``; a source of metrics."""

    moment = 0.0

    def __init__(self) -> None:
        self._in_flight: dict[Operation, int] = dict.fromkeys(get_args(Operation), 0)
        self._seconds = {operation: Histogram(_SECONDS) for operation in self._in_flight}

    @contextmanager
    def operation(self, operation: Operation) -> Iterator[None]:
        """While one operation is under way. One that fails counts, too."""
        started = time.perf_counter()
        self._in_flight[operation] += 1
        try:
            yield
        finally:
            self._in_flight[operation] -= 1
            self._seconds[operation].observe(time.perf_counter() - started)

    def families(self) -> Iterator[Family]:
        """The metrics as they stand now."""
        name = "vllm:sleep_mode_operations_in_flight"
        under_way: dict[str, float] = {
            key_of(name, {"operation": operation}): count for operation, count in self._in_flight.items()
        }
        yield Family(name, "gauge", "Operations of sleep mode that are under way.", "sum", under_way)
        name = "vllm:sleep_mode_operation_duration_seconds"
        series: dict[str, float] = {}
        for operation, histogram in self._seconds.items():
            series |= histogram_series(name, {"operation": operation}, histogram)
        yield Family(name, "histogram", "Seconds of operations of sleep mode.", "sum", series)
