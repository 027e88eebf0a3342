"""What a process has to tell: sources of metrics, read together for the page."""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric

from vllm_engine.logging import get_logger
from vllm_server.telemetry.snapshot import Combine, Family, Kind, Snapshot, merge, render, series_key
from vllm_server.telemetry.told_counts import ToldCounts

logger = get_logger(__name__)

_KINDS: dict[str, Kind] = {"counter": "counter", "gauge": "gauge", "histogram": "histogram", "summary": "summary"}
_LARGEST = {"process_start_time_seconds", "process_max_fds"}
"""Gauges of a process of which several together have the largest, not the sum."""


class Source(Protocol):
    """Somebody who has metrics. ``moment``: when it last heard from the engine, in monotonic seconds; 0 for never."""

    moment: float

    def families(self) -> Iterable[Family]:
        """Its metrics as they stand now. What is handed out must not change afterwards."""
        ...


class Registry:
    """The sources of one process. A source that fails is left out and logged: the page of the others is served."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._sources: list[Source] = list(sources)
        self._told: ToldCounts | None = None
        self._inherited = Snapshot(0.0, [])

    def register(self, source: Source) -> None:
        """Add a source; its metrics come after those of the others."""
        self._sources.append(source)

    def go_on_from(self, told: ToldCounts, row: int) -> None:
        """Count on from what the process before this one has told, and let the next one do so. ``row`` is of both."""
        self._inherited = told.of(row)
        self._told = told

    def snapshot(self) -> Snapshot:
        """All metrics as they stand now."""
        families: list[Family] = []
        moment = 0.0
        for source in self._sources:
            try:
                families += source.families()
                moment = max(moment, source.moment)
            except Exception:
                logger.exception("some metrics could not be read")
        snapshot = Snapshot(moment, families)
        if self._told is not None:
            self._inherited.moment = moment  # stands after what it is added to
            snapshot = merge([snapshot, self._inherited])
            self._told.keep(snapshot)
        return snapshot

    def page(self) -> bytes:
        """The page of this process alone."""
        return render(self.snapshot())


class PrometheusSource:
    """The metrics of a registry of ``prometheus_client``."""

    moment = 0.0

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def families(self) -> list[Family]:
        """Its metrics in our form."""
        return [_converted(metric) for metric in self._registry.collect()]


def new_registry() -> Registry:
    """A registry with the metrics of the process: memory, CPU time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return Registry([PrometheusSource(registry)])


def _converted(metric: Metric) -> Family:
    kind = _KINDS.get(metric.type, "untyped")
    largest = metric.name in _LARGEST or metric.name.endswith("_info")
    combine: Combine = "max" if largest else "sum"
    series = {
        series_key(sample.name, tuple(sample.labels), tuple(sample.labels.values())): sample.value
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    name = f"{metric.name}_total" if kind == "counter" else metric.name
    return Family(name, kind, metric.documentation, combine, series)
