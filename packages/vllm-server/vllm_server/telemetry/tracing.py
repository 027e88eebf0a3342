"""OpenTelemetry traces: a span for each request that generates, with its phases as children.

The packages of OpenTelemetry are optional (``pip install 'vllm-server[otel]'``) and imported only where they are used.
"""

import asyncio
import importlib
import logging
import os
import threading
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server.telemetry.request_record import PHASES, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = get_logger(__name__)

PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_EXPORTERS = {"grpc": "proto.grpc", "http/protobuf": "proto.http"}
_FIELD = "otlp_traces_endpoint"
_FLUSH_SECONDS = 2.0
_CONTEXT = (b"traceparent", b"tracestate")
_ROUTES = ("/v1/", "/invocations")
"""Where requests that generate begin; others, such as those of load balancers, have no spans."""
_SAME_COMPLAINT_SECONDS = 60.0


def create_tracer(endpoint: str | None, model_name: str) -> "RequestTracer | None":
    """What sends spans to ``endpoint``, by the protocol that the environment names; None without an endpoint.

    Raises:
        ConfigError: for packages that are missing, an endpoint that is no URL, and an unknown protocol.
    """
    if endpoint is None:
        return None
    protocol = os.environ.get(PROTOCOL) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol not in _EXPORTERS:
        raise ConfigError(f"{PROTOCOL}={protocol!r} is not a protocol: {', '.join(_EXPORTERS)}", field=PROTOCOL)
    schemes = ("http", "https", "grpc") if protocol == "grpc" else ("http", "https")
    if urlsplit(endpoint).scheme not in schemes or not urlsplit(endpoint).netloc:
        example = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318/v1/traces"
        raise ConfigError(f"{_FIELD}: {endpoint!r} is no URL for {protocol}, such as {example}", field=_FIELD)
    try:
        importlib.import_module("opentelemetry.sdk.trace.export")
        module = importlib.import_module(f"opentelemetry.exporter.otlp.{_EXPORTERS[protocol]}.trace_exporter")
    except ImportError as error:
        raise ConfigError(
            f"{_FIELD} needs packages that are not installed: pip install 'vllm-server[otel]' ({error})", field=_FIELD
        ) from error
    try:
        return RequestTracer(module.OTLPSpanExporter(endpoint=endpoint), model_name)
    except Exception as error:  # of variables of the environment that the exporter reads
        raise ConfigError(f"{_FIELD}: the exporter cannot start: {error}", field=_FIELD) from error


class RequestTracer:
    """Makes the spans of requests. They are sent by a thread; what it cannot send in time is dropped.

    Which requests have spans is up to who sends them (a ``traceparent`` that is not sampled has none), and else to
    ``OTEL_TRACES_SAMPLER``.
    """

    def __init__(self, exporter: "SpanExporter", model_name: str) -> None:
        """``model_name``: stands in each span."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": "vllm"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vllm_server")
        _forward_complaints()

    def on_start(self, record: RequestRecord, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin the span of a request, within the trace that its headers name."""
        if record.method != "POST":
            return
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT}
        span = record.span = self._tracer.start_span(
            "llm_request",
            self._propagator.extract(carrier),
            self._trace.SpanKind.SERVER,
            start_time=_nanoseconds(record, record.arrived),
        )
        context = span.get_span_context()
        if context.is_valid:
            record.trace_response = (
                f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}".encode()
            )

    def on_end(self, record: RequestRecord) -> None:
        """End the span: with its children, if anything was generated. Those of unknown routes are forgotten."""
        span = record.span
        if span is None or not span.is_recording() or not (record.route or "").startswith(_ROUTES):
            return
        ended = record.ended or time.monotonic()
        for name, value in _attributes(record, self._model_name, ended).items():
            if value is not None:
                span.set_attribute(name, value)
        failed = record.error is not None or (record.status or 500) >= 500
        if failed or not record.complete:
            kind = type(record.error).__name__ if record.error else "ClientDisconnect" if not failed else "ServerError"
            span.set_attribute("error.type", kind)
        if failed:
            span.set_status(self._trace.StatusCode.ERROR)
        if record.prompts:
            parent = self._trace.set_span_in_context(span)
            for name, (begin, end) in zip(PHASES, pairwise(record.moments(ended)), strict=True):
                phase = self._tracer.start_span(name, parent, start_time=_nanoseconds(record, begin))
                phase.end(_nanoseconds(record, end))
        span.end(_nanoseconds(record, ended))

    async def close(self) -> None:
        """Send what is left, for two seconds at most."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(sent.set)

        # A daemon: a collector that does not answer must not keep the process.
        threading.Thread(target=flush, name="traces-flush", daemon=True).start()
        try:
            await asyncio.wait_for(sent.wait(), _FLUSH_SECONDS)
        except TimeoutError:
            logger.warning("not all traces could be sent within %g s", _FLUSH_SECONDS)


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """A monotonic moment of a request as Unix time."""
    return round((record.arrived_at + (moment - record.arrived)) * 1e9)


def _attributes(record: RequestRecord, model_name: str, ended: float) -> dict[str, Any]:
    """What a span tells, by the names that dashboards know. Texts of the client are not among it, but its label."""
    told: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "gen_ai.request.id": record.label,
        "gen_ai.response.id": record.response_id,
        "gen_ai.response.model": model_name,
        "gen_ai.latency.e2e": ended - record.arrived,
    }
    params = record.params
    if params is not None:
        for name in ("max_tokens", "temperature", "top_p", "top_k", "n", "frequency_penalty", "presence_penalty"):
            told[f"gen_ai.request.{name}"] = getattr(params, name)
    if record.prompts:
        _, submitted, scheduled, first, last, _ = record.moments(ended)
        told |= {
            "gen_ai.response.finish_reasons": sorted(record.finish_reasons),
            "gen_ai.usage.num_sequences": len(record.prompts) * (1 if params is None else params.n),
            "gen_ai.usage.prompt_tokens": record.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": record.num_generated,
            "gen_ai.usage.cached_tokens": record.num_cached,
            "gen_ai.usage.num_preemptions": record.num_preemptions,
            "gen_ai.latency.time_in_queue": scheduled - submitted,
            "gen_ai.latency.time_to_first_token": first - record.arrived,
            "gen_ai.latency.time_in_model_prefill": first - scheduled,
            "gen_ai.latency.time_in_model_decode": last - first,
            "gen_ai.latency.time_in_model_inference": last - scheduled,
        }
    return told


class _Complaints(logging.Handler):
    """Puts what OpenTelemetry complains about into our log: the same once a minute, without stacks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: dict[tuple[str, int], float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._told.get(place, -_SAME_COMPLAINT_SECONDS) >= _SAME_COMPLAINT_SECONDS:
            self._told[place] = now
            logger.warning("traces: %s", record.getMessage())


def _forward_complaints() -> None:
    """Unless a configuration of the operator's own says where the log of OpenTelemetry goes."""
    theirs = logging.getLogger("opentelemetry")
    if not theirs.handlers:
        theirs.addHandler(_Complaints())
        theirs.propagate = False
