"""What HTTP requests took, by the names and labels of prometheus-fastapi-instrumentator, which dashboards know."""

from collections import Counter
from collections.abc import Iterator

from vllm_engine.metrics.histogram import Histogram
from vllm_server.telemetry.families import histogram_series, key_of
from vllm_server.telemetry.request_record import RequestRecord
from vllm_server.telemetry.snapshot import Family, Kind

_FINE_SECONDS = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),)
_COARSE_SECONDS = (0.1, 0.5, 1)
_UNCOUNTED = frozenset({"/metrics", "/health", "/livez", "/readyz", "/load", "/ping", "/version", "/server_info"})
"""Routes that machines ask every few seconds."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_NO_HANDLER = "none"
"""For requests that no route took: what stands in a label must not be a client's to choose."""


class HttpMetrics:
    """Counts requests when their answer is over, streams and refused ones included; a source of metrics."""

    moment = 0.0

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()  # by handler, status and method
        self._request_bytes: dict[str, list[int]] = {}  # by handler: requests, bytes
        self._response_bytes: dict[str, list[int]] = {}
        self._fine = Histogram(_FINE_SECONDS)
        self._coarse: dict[tuple[str, str], Histogram] = {}  # by handler and method

    def on_end(self, record: RequestRecord) -> None:
        """Take in a request that is over. One whose answer never began counts as failed, with the status 5xx."""
        handler = record.route or _NO_HANDLER
        if handler in _UNCOUNTED:
            return
        method = record.method if record.method in _METHODS else "other"
        self._requests[handler, f"{(record.status or 500) // 100}xx", method] += 1
        for sizes, size in ((self._request_bytes, record.content_length), (self._response_bytes, record.num_bytes)):
            entry = sizes.setdefault(handler, [0, 0])
            entry[0] += 1
            entry[1] += size
        seconds = 0.0 if record.ended is None else record.ended - record.arrived
        self._fine.observe(seconds)
        self._coarse.setdefault((handler, method), Histogram(_COARSE_SECONDS)).observe(seconds)

    def families(self) -> Iterator[Family]:
        """All metrics as they stand now."""
        name = "http_requests_total"
        labels = ("handler", "status", "method")
        series = {
            key_of(name, dict(zip(labels, values, strict=True))): float(count)
            for values, count in self._requests.copy().items()
        }
        yield _summed(name, "counter", "Requests by route, status and method.", series)
        for name, text, sizes in (
            ("http_request_size_bytes", "Content length of requests by route.", self._request_bytes),
            ("http_response_size_bytes", "Bytes of answers by route.", self._response_bytes),
        ):
            series = {}
            for handler, (count, size) in sizes.copy().items():
                series[key_of(f"{name}_count", {"handler": handler})] = count
                series[key_of(f"{name}_sum", {"handler": handler})] = size
            yield _summed(name, "summary", text, series)
        name = "http_request_duration_highr_seconds"
        text = "Seconds from a request to the end of its answer, finely."
        yield _summed(name, "histogram", text, histogram_series(name, {}, self._fine))
        name = "http_request_duration_seconds"
        series = {}
        for (handler, method), histogram in self._coarse.copy().items():
            series |= histogram_series(name, {"handler": handler, "method": method}, histogram)
        yield _summed(name, "histogram", "Seconds from a request to the end of its answer, by route.", series)


def _summed(name: str, kind: Kind, text: str, series: dict[str, float]) -> Family:
    return Family(name, kind, text, "sum", series)
