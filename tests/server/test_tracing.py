"""OpenTelemetry traces, as a collector gets them: spans of requests with their phases, within the caller's trace."""

import asyncio
import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM, sse_events
from tests.server.process import Process
from vllm_engine import LLM
from vllm_engine.errors import ConfigError
from vllm_server.app import build_app
from vllm_server.telemetry.request_record import PHASES
from vllm_server.telemetry.tracing import PROTOCOL, RequestTracer, create_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "what-only-the-client-knows"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []
    handler = type("Handler", (Collector,), {"bodies": bodies})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def spans_in(bodies: list[bytes]) -> list[Span]:
    requests = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    scopes = [scope for one in requests for resource in one.resource_spans for scope in resource.scope_spans]
    return [span for scope in scopes for span in scope.spans]


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_process_sends_what_its_receipts_say(
    collector: tuple[str, list[bytes]], processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = collector
    monkeypatch.setenv(PROTOCOL, "http/protobuf")
    processes.append(process := Process("--otlp-traces-endpoint", url, delay=0.005, first_delay=0.02))
    body = {"prompt": SECRET, "max_tokens": 6, "n": 2, "temperature": 0.5, "stop": SECRET, "include_receipt": True}
    answers = []
    with httpx.Client(base_url=process.url) as client:
        for stream in (False, True):
            headers = {
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "tracestate": "vendor=value",
                "x-request-id": f"mine-{stream}",
                "authorization": f"Bearer {SECRET}",
            }
            answer = client.post("/v1/completions", json={**body, "stream": stream}, headers=headers)
            receipt = json.loads(list(sse_events(answer.text))[-2] if stream else answer.text)["receipt"]
            answers.append((answer.headers, receipt))
        not_sampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        assert client.post("/v1/completions", json=body, headers=not_sampled).headers["traceresponse"].endswith("-00")
        assert client.get("/health").status_code == 200
        assert client.post("/v1/nowhere", json={}).status_code == 404
    process.signal(15)
    assert process.end() == 0  # what was not yet sent has been

    spans = spans_in(bodies)
    assert len(spans) == 2 * (1 + len(PHASES))
    assert not any(SECRET.encode() in one for one in bodies)
    for number, (headers, receipt) in enumerate(answers):
        _, trace_id, span_id, flags = headers["traceresponse"].split("-")
        (root,) = (span for span in spans if span.span_id.hex() == span_id)
        assert (root.name, root.kind, root.trace_state) == ("llm_request", Span.SPAN_KIND_SERVER, "vendor=value")
        assert (trace_id, root.trace_id.hex(), root.parent_span_id.hex(), flags) == (TRACE, TRACE, PARENT, "01")
        children = [span for span in spans if span.parent_span_id == root.span_id]
        assert [child.name for child in children] == list(PHASES)
        moments = [child.start_time_unix_nano for child in children]
        assert moments == sorted(moments) and moments[0] == root.start_time_unix_nano
        assert children[-1].end_time_unix_nano == root.end_time_unix_nano
        for child in children[:-1]:
            assert seconds(child) == pytest.approx(receipt[f"{child.name}_time"], abs=3e-6)
        # The receipt is written a little before the last byte is sent.
        assert 0 <= seconds(root) - receipt["total_time"] < 0.1
        told = attributes(root)
        expected = {
            "gen_ai.request.id": f"mine-{bool(number)}",
            "gen_ai.response.model": "demo",
            "gen_ai.request.max_tokens": 6,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.n": 2,
            "gen_ai.usage.num_sequences": 2,
            "gen_ai.usage.prompt_tokens": receipt["prompt_tokens"],
            "gen_ai.usage.completion_tokens": receipt["generated_tokens"],
            "http.route": "/v1/completions",
            "http.response.status_code": 200,
        }
        assert {name: told[name] for name in expected} == expected
        latencies = {
            "time_in_queue": receipt["queue_time"],
            "time_to_first_token": sum(receipt[f"{phase}_time"] for phase in PHASES[:3]),
            "time_in_model_prefill": receipt["prefill_time"],
            "time_in_model_decode": receipt["decode_time"],
            "time_in_model_inference": receipt["prefill_time"] + receipt["decode_time"],
            "e2e": seconds(root),
        }
        for name, value in latencies.items():
            assert told[f"gen_ai.latency.{name}"] == pytest.approx(value, abs=3e-6)


@pytest.fixture
async def exported() -> AsyncIterator[tuple[RequestTracer, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, "fake")
    yield tracer, exporter
    await tracer.close()


Exported = tuple[RequestTracer, InMemorySpanExporter]


async def finished(exported: Exported) -> list[ReadableSpan]:
    exported[0]._provider.force_flush()
    return list(exported[1].get_finished_spans())


async def test_what_fails_has_a_span_that_says_so(exported: Exported) -> None:
    async with make_client(build_app(make_context(FakeLLM(), tracer=exported[0]))) as client:
        await client.post("/v1/completions", json={"prompt": "x", "top_p": 7})
        await client.post("/v1/completions", json={"prompt": "!fail-after-3", "stream": True})
        await client.post("/v1/completions", json={"prompt": "!boom"})
    roots = [span for span in await finished(exported) if span.name == "llm_request"]
    told = [dict(span.attributes or {}) for span in roots]
    assert [one.get("error.type") for one in told] == ["InvalidRequest", "RequestFailed", "ServerError"]
    assert [one["http.response.status_code"] for one in told] == [400, 200, 500]
    assert [span.status.is_ok for span in roots] == [False, False, False]
    assert told[1]["gen_ai.usage.completion_tokens"] == 3


async def test_the_span_of_a_response_in_the_background_lasts_as_long_as_that(exported: Exported) -> None:
    route, body = "/v1/responses", {"input": "x", "max_output_tokens": 4, "background": True, "include_receipt": True}
    async with make_client(build_app(make_context(FakeLLM(delay=0.01), tracer=exported[0]))) as client:
        made = (await client.post(route, json=body)).json()
        while made["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
            made = (await client.get(f"{route}/{made['id']}")).json()
    *phases, root = await finished(exported)
    assert [span.name for span in phases] == list(PHASES)
    (decode,) = (span for span in phases if span.name == "decode")
    seconds = ((decode.end_time or 0) - (decode.start_time or 0)) / 1e9
    assert seconds == pytest.approx(made["receipt"]["decode_time"], abs=3e-6)
    assert (root.attributes or {})["gen_ai.usage.completion_tokens"] == 4


async def test_a_client_that_leaves_ends_its_span(exported: Exported) -> None:
    with running(make_context(FakeLLM(delay=0.01), tracer=exported[0])) as url:
        body = {"prompt": "x", "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 5
        while not (spans := await finished(exported)) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
    (root,) = (span for span in spans if span.name == "llm_request")
    assert (root.attributes or {})["error.type"] == "ClientDisconnect"


async def test_grpc_is_what_is_spoken_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROTOCOL, raising=False)
    bodies: list[bytes] = []

    def export(body: bytes, _: Any) -> bytes:
        bodies.append(body)
        answer: bytes = ExportTraceServiceResponse().SerializeToString()
        return answer

    server = grpc.server(futures.ThreadPoolExecutor(1))
    methods = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracer = create_tracer(f"http://127.0.0.1:{port}", "fake")
        assert tracer is not None
        async with make_client(build_app(make_context(FakeLLM(), tracer=tracer))) as client:
            await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
        await tracer.close()
    finally:
        server.stop(None)
    assert sorted(span.name for span in spans_in(bodies)) == sorted(["llm_request", *PHASES])


def test_a_collector_that_never_answers_costs_no_request_and_little_time_at_the_end(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROTOCOL, "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        processes.append(process := Process("--otlp-traces-endpoint", url))
        with httpx.Client(base_url=process.url) as client:
            for _ in range(40):
                start = time.monotonic()
                assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
                assert time.monotonic() - start < 5
        start = time.monotonic()
        process.signal(15)
        assert process.end() == 0
        assert time.monotonic() - start < 9
    assert sum("not all traces could be sent" in line for line in process.log) == 1


@pytest.mark.parametrize(
    ("endpoint", "protocol", "field"),
    [
        ("http://localhost:4317", "http/json", PROTOCOL),
        ("localhost:4317", "grpc", "otlp_traces_endpoint"),
        ("grpc://localhost:4317", "http/protobuf", "otlp_traces_endpoint"),
    ],
)
def test_what_cannot_be_sent_to_is_refused(
    endpoint: str, protocol: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROTOCOL, protocol)
    with pytest.raises(ConfigError) as caught:
        create_tracer(endpoint, "fake")
    assert caught.value.field == field


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'vllm-server\[otel\]'"):
        create_tracer("http://localhost:4317", "fake")
    assert create_tracer(None, "fake") is None


def test_an_engine_without_a_server_refuses_to_send_traces() -> None:
    with pytest.raises(ConfigError, match="otlp_traces_endpoint"):
        LLM("demo", otlp_traces_endpoint="http://localhost:4317")
