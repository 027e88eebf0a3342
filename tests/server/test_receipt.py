"""``include_receipt``: where the time of a request went, and what was computed for it."""

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.demo_process import DemoProcess
from tests.server.fake_llm import FakeLLM, sse_events
from vllm_engine.outputs import RequestMetrics
from vllm_server.app import build_app
from vllm_server.telemetry.request_record import PromptRecord, RequestRecord

PHASES = ("preparation_time", "queue_time", "prefill_time", "decode_time", "delivery_time")
LIMIT = 0.002
"""Seconds by which a client's own time may differ from the receipt."""
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = [("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", CHAT)]


def total_of(receipt: dict[str, Any]) -> float:
    return float(sum(receipt[phase] for phase in PHASES))


@pytest.mark.parametrize(("route", "body"), ROUTES)
async def test_it_comes_with_the_answer_or_the_last_chunk_where_it_is_asked_for(
    route: str, body: dict[str, Any]
) -> None:
    asked: list[tuple[dict[str, Any], dict[str, str], bool]] = [
        ({}, {}, False),
        ({"include_receipt": True}, {}, True),
        ({}, {"x-vllm-include-receipt": "True"}, True),
        ({"include_receipt": False}, {"x-vllm-include-receipt": "true"}, False),
    ]
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        for fields, headers, wanted in asked:
            answer = (await client.post(route, json={**body, "max_tokens": 3, **fields}, headers=headers)).json()
            assert ("receipt" in answer) == wanted
            for options in ({}, {"stream_options": {"include_usage": True}}):
                stream = {**body, "max_tokens": 3, "stream": True, **fields, **options}
                *chunks, done = sse_events((await client.post(route, json=stream, headers=headers)).text)
                holds = ["receipt" in json.loads(chunk) for chunk in chunks]
                assert (done, any(holds), holds[-1]) == ("[DONE]", wanted, wanted)
                assert sum(holds) <= 1
                last = json.loads(chunks[-1])
                assert (last["choices"] == []) == (wanted or bool(options))
                assert bool(last.get("usage")) == bool(options)
        refused = await client.post(route, json=body, headers={"x-vllm-include-receipt": "perhaps"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "x-vllm-include-receipt"


async def test_it_is_part_of_a_complete_response_however_that_is_made() -> None:
    route, body = "/v1/responses", {"input": "hi", "max_output_tokens": 3}
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        for headers, fields in (({}, {"include_receipt": True}), ({"x-vllm-include-receipt": "1"}, {})):
            answer = (await client.post(route, json={**body, **fields}, headers=headers)).json()
            assert answer["receipt"]["generated_tokens"] == 3
            assert (await client.get(f"{route}/{answer['id']}")).json() == answer
            stream = await client.post(route, json={**body, **fields, "stream": True}, headers=headers)
            *events, last = (json.loads(line[6:]) for line in stream.text.split("\n") if line.startswith("data: "))
            assert last["response"]["receipt"]["generated_tokens"] == 3
            assert not any("receipt" in event.get("response", {}) for event in events)
            background = {**body, **fields, "background": True}
            begun = (await client.post(route, json=background, headers=headers)).json()
            assert "receipt" not in begun
            while (made := (await client.get(f"{route}/{begun['id']}")).json())["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0)
            assert total_of(made["receipt"]) == pytest.approx(made["receipt"]["total_time"], abs=1e-9)
        for headers, fields in (({}, {}), ({"x-vllm-include-receipt": "true"}, {"include_receipt": False})):
            answer = (await client.post(route, json={**body, **fields}, headers=headers)).json()
            assert "receipt" not in answer
        refused = await client.post(route, json=body, headers={"x-vllm-include-receipt": "perhaps"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-vllm-include-receipt")


async def test_a_request_that_fails_has_none() -> None:
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        failing = {"input": "!fail-after-3", "include_receipt": True, "stream": True}
        text = (await client.post("/v1/responses", json=failing)).text
        assert "response.failed" in text and '"receipt"' not in text
        for prompt in ("!error", "!fail-after-3"):
            body = {"prompt": prompt, "max_tokens": 9, "include_receipt": True}
            assert "receipt" not in (await client.post("/v1/completions", json=body)).json()
            assert '"receipt"' not in (await client.post("/v1/completions", json={**body, "stream": True})).text


async def test_the_phases_are_those_of_the_engine_and_add_up() -> None:
    """The scripted engine queues for 30 ms, and takes 10 ms for each token."""
    async with make_client(build_app(make_context(FakeLLM(first_delay=0.03, delay=0.01)))) as client:
        body = {"prompt": "x" * 40, "max_tokens": 6, "include_receipt": True}
        receipt = (await client.post("/v1/completions", json=body)).json()["receipt"]
    assert 0.03 <= receipt["queue_time"] < 0.2
    assert 0.01 <= receipt["prefill_time"] < 0.2
    assert 0.05 <= receipt["decode_time"] < 0.4
    assert total_of(receipt) == pytest.approx(receipt["total_time"], abs=1e-9)
    assert {name: receipt[name] for name in receipt if not name.endswith("_time")} == {
        "prompt_tokens": 41,
        "cached_tokens": 32,
        "computed_tokens": 9,
        "generated_tokens": 6,
        "preemptions": 0,
    }


async def test_several_prompts_and_completions_are_one_request() -> None:
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        for stream in (False, True):
            fields = {"prompt": ["x" * 40, "y"], "max_tokens": 4, "n": 3, "include_receipt": True, "stream": stream}
            text = (await client.post("/v1/completions", json=fields)).text
            receipt = json.loads(list(sse_events(text))[-2] if stream else text)["receipt"]
            assert receipt["prompt_tokens"] == 41 + 2
            assert receipt["cached_tokens"] == 3 * 32
            assert receipt["computed_tokens"] == 3 * (41 + 2) - 3 * 32
            assert receipt["generated_tokens"] == 6 * 4


def test_phases_of_several_prompts_end_with_the_first_and_the_last_with_the_last_token() -> None:
    record = RequestRecord()
    record.arrived = 100.0
    for index, moments in enumerate([(101.0, 103.0, 104.0, 105.0), (100.5, 103.5, 103.75, 109.0)]):
        submitted, scheduled, first, last = moments
        record.prompts[index] = PromptRecord(
            5, RequestMetrics(submitted_ts=submitted, scheduled_ts=scheduled, first_token_ts=first, last_token_ts=last)
        )
    receipt = record.receipt(110.0)
    assert [receipt.preparation_time, receipt.queue_time, receipt.prefill_time] == [0.5, 2.5, 0.75]
    assert [receipt.decode_time, receipt.delivery_time, receipt.total_time] == [5.25, 1.0, 10.0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = DemoProcess(tmp_path_factory.mktemp("demo"))
    yield process.url
    process.process.terminate()
    process.process.wait(timeout=20)
    process.clean_up()


def timed(connection: http.client.HTTPConnection, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds from the request to the end of its answer, as the client has them, and the receipt."""
    data = json.dumps(body).encode()
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    text = connection.getresponse().read()
    seconds = time.perf_counter() - start
    answer = json.loads(list(sse_events(text.decode()))[-2]) if body.get("stream") else json.loads(text)
    return seconds, answer["receipt"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3, "prompt": ["Hello", "There was"], "logprobs": 5}])
def test_its_phases_sum_to_the_time_that_the_client_sees(demo: str, fields: dict[str, Any]) -> None:
    """In the best of twenty requests: what else the machine does is in the time of the client only."""
    body = {"prompt": "Hello", "max_tokens": 16, "ignore_eos": True, "include_receipt": True, **fields}
    connection = http.client.HTTPConnection(httpx.URL(demo).host, httpx.URL(demo).port or 80, timeout=20)
    differences = []
    for _ in range(20):
        seconds, receipt = timed(connection, body)
        assert total_of(receipt) == pytest.approx(receipt["total_time"], abs=1e-9)
        differences.append(seconds - total_of(receipt))
    connection.close()
    assert min(differences) > 0
    assert min(differences) < LIMIT


def test_cached_and_computed_tokens_are_those_of_the_engine(demo: str) -> None:
    prompt = [3 + index % 50 for index in range(100)]
    body = {"prompt": prompt, "max_tokens": 1, "include_receipt": True, "cache_salt": "test"}
    with httpx.Client(base_url=demo) as client:
        first, again = (client.post("/v1/completions", json=body).json()["receipt"] for _ in range(2))
        several = client.post("/v1/completions", json={**body, "n": 2, "seed": 1}).json()["receipt"]
    assert (first["cached_tokens"], first["computed_tokens"]) == (0, 100)
    assert again["cached_tokens"] + again["computed_tokens"] == 100
    cached = again["cached_tokens"]
    assert 64 <= cached < 100
    assert (several["cached_tokens"], several["computed_tokens"]) == (2 * cached, 2 * (100 - cached))
