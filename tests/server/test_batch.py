"""``vllm run-batch`` against the scripted engine: answers, order, bounds, and every way to end."""

import asyncio
import json
import signal
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tests.server.batch_folder import KEY, Folder, answer, line, start, work_on
from tests.server.fake_llm import FakeLLM
from vllm_engine.errors import ConfigError, EngineDead
from vllm_server import app
from vllm_server.batch.config import AS_SERVED, BatchConfig, create_batch_config
from vllm_server.batch.input import open_input
from vllm_server.batch.journal import Journal, JournalPlace
from vllm_server.batch.metrics import metrics_server
from vllm_server.config import ServerConfig
from vllm_server.telemetry.registry import new_registry


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def place(folder: Folder) -> JournalPlace:
    return JournalPlace(folder.path, "out.jsonl", "output_file")


# ---- answers ----


async def test_answers_are_those_of_the_routes_in_the_order_of_the_input(
    folder: Folder, llm: FakeLLM, client: httpx.AsyncClient
) -> None:
    completion = {"prompt": "hi", "max_tokens": 5, "logprobs": 1}
    chat = {"model": "alias", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "n": 2}
    counts = await answer(
        folder, llm, line("one", **completion), "", line("two", url="/v1/chat/completions", **chat), "  \t"
    )
    assert counts == (2, 0)
    first, second = folder.results()
    for result, custom_id, url, body in (
        (first, "one", "/v1/completions", completion),
        (second, "two", "/v1/chat/completions", chat),
    ):
        expected = (await client.post(url, json=body)).json()
        assert result["custom_id"] == custom_id
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["response"]["request_id"]
        same = {"id": "", "created": 0}
        assert result["response"]["body"] | same == expected | same
    assert first["id"] != second["id"]
    assert folder.partial == []


async def test_a_request_that_its_route_refuses_fails_alone(
    folder: Folder, llm: FakeLLM, client: httpx.AsyncClient
) -> None:
    bodies = [
        {"prompt": "hi", "temperature": -1},
        {"prompt": "hi", "colour": "red"},
        {"prompt": "hi", "model": "other"},
        {"prompt": "!fail"},
        {"prompt": "!boom"},
        {"prompt": "hi", "max_tokens": 2, "request_id": "mine"},
    ]
    counts = await answer(folder, llm, *(line(str(index), **body) for index, body in enumerate(bodies)))
    assert counts == (6, 5)
    results = folder.results()
    for result, body in zip(results, bodies, strict=True):
        expected = await client.post("/v1/completions", json=body)
        assert result["response"]["status_code"] == expected.status_code
        if expected.status_code != 200:
            assert result["response"]["body"] == expected.json()
            assert result["error"] == expected.json()["error"]
    assert [result["response"]["status_code"] for result in results] == [400, 400, 404, 500, 500, 200]
    assert results[5]["response"]["request_id"] == "mine"


@pytest.mark.parametrize(
    ("text", "custom_id", "field", "message"),
    [
        ("not json", None, None, "the line is not valid JSON"),
        (b"\xff\xfe", None, None, "the line is not valid"),
        ("[1]", None, None, "the line must be a JSON object"),
        ("{}", None, "custom_id", "custom_id is missing"),
        (line(url="/v1/embeddings"), "a", "url", f"url must be one of {', '.join(app.json_urls())}, got"),
        (line(url="http://server/v1/completions"), "a", "url", "url must be one of"),
        (line(method="GET"), "a", "method", "method must be POST, got 'GET'"),
        (line(prompt="hi", stream=True), "a", "stream", "stream must be false"),
        ('{"custom_id": 1, "method": "POST", "url": "/v1/completions", "body": {}}', None, "custom_id", "a text"),
        ('{"custom_id": "a", "method": "POST", "url": 1, "body": {}}', "a", "url", "url must be one of"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions"}', "a", "body", "body is missing"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}', "a", "method", "method is missing"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": []}', "a", "body", "a JSON object"),
        ('{"x": ' + "[" * 100_000, None, None, "the JSON of the line is nested too deeply"),
    ],
)
async def test_a_line_that_is_no_request_becomes_an_error_and_the_others_are_answered(
    folder: Folder, llm: FakeLLM, text: str | bytes, custom_id: str | None, field: str | None, message: str
) -> None:
    good = line("good", prompt="hi", max_tokens=2)
    counts = await answer(folder, llm, good, text, good)
    assert counts == (3, 1)
    before, wrong, after = folder.results()
    assert before["response"]["body"]["choices"][0]["text"] == after["response"]["body"]["choices"][0]["text"] == "ab"
    assert wrong["custom_id"] == custom_id
    assert wrong["response"]["status_code"] == 400
    assert wrong["response"]["body"] == {"error": wrong["error"]}
    assert wrong["error"]["param"] == field
    assert wrong["error"]["message"].startswith("line 2: ")
    assert message in wrong["error"]["message"]


@pytest.mark.parametrize("body", ['{"prompt": "\\ud800"}', '{"prompt": 1e999}', '{"stream": 3}', '{"prompt": NaN}'])
async def test_a_body_that_is_not_to_be_read_is_refused_by_its_route_or_before(
    folder: Folder, llm: FakeLLM, body: str
) -> None:
    text = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": ' + body + "}"
    counts = await answer(folder, llm, text)
    assert counts == (1, 1)
    assert folder.results()[0]["response"]["status_code"] == 400


async def test_a_line_without_an_end_one_with_a_mark_and_equal_ids_are_taken(folder: Folder, llm: FakeLLM) -> None:
    text = line("same", prompt="hi", max_tokens=1)
    folder.write()
    await answer(folder, llm, b"\xef\xbb\xbf" + text.encode() + b"\r\n" + text.encode())
    assert [result["custom_id"] for result in folder.results()] == ["same", "same"]


async def test_a_line_that_is_too_long_is_not_held(
    folder: Folder, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_server.batch.input.MAX_LINE_BYTES", 200)
    good = line("good", prompt="hi", max_tokens=1)
    await answer(folder, llm, line("long", prompt="x" * 1000), good)
    long, after = folder.results()
    assert (long["custom_id"], long["response"]["status_code"]) == (None, 413)
    assert long["error"]["message"].startswith("line 1: the line is longer than ")
    assert after["response"]["status_code"] == 200


async def test_an_empty_input_gives_an_empty_output(folder: Folder, llm: FakeLLM) -> None:
    counts = await answer(folder, llm)
    assert (counts, folder.output.read_bytes()) == ((0, 0), b"")


async def test_a_route_of_its_own_is_served_without_a_word_about_batches(
    folder: Folder, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its answers may be: JSON over many lines, an error without the usual body, no JSON at all, a crash."""
    router = APIRouter()

    @router.post("/v1/echo", openapi_extra={"requestBody": {}})
    async def echo(raw: Request) -> Response:
        asked = await raw.json()
        if asked.get("crash"):
            raise RuntimeError("secret")
        return Response(asked["text"], asked["status"], media_type="application/json")

    monkeypatch.setattr(app, "_ROUTES", (*app._ROUTES, type("module", (), {"router": router})))
    asked = [
        {"text": '{\n  "a": 1\n}', "status": 200},
        {"text": '{"b": 2}', "status": 422},
        {"text": "not JSON", "status": 200},
        {"text": "", "status": 200},
        {"crash": True},
    ]
    counts = await answer(folder, llm, *(line(str(index), url="/v1/echo", **one) for index, one in enumerate(asked)))
    assert counts == (5, 4)
    whole, refused, *broken = folder.results()
    assert (whole["response"]["body"], whole["error"]) == ({"a": 1}, None)
    assert (refused["response"]["body"], refused["response"]["status_code"]) == ({"b": 2}, 422)
    assert refused["error"]["message"] == "the route answered 422"
    for result in broken:
        assert result["response"]["status_code"] == 500
        assert result["error"]["code"] == "internal_error"
    assert "secret" not in folder.output.read_text()


async def test_settings_of_the_server_hold_for_its_answers(folder: Folder, llm: FakeLLM, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")  # for those who call over the network
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    await answer(folder, llm, line(url="/v1/chat/completions", **chat), response_role="parrot")
    assert folder.results()[0]["response"]["body"]["choices"][0]["message"]["role"] == "parrot"


@pytest.mark.parametrize(
    ("flags", "read"),
    [
        (["--return-tokens-as-token-ids"], lambda body: body["choices"][0]["logprobs"]["content"][0]["token"]),
        (["--chat-template-content-format", "openai"], lambda body: body["usage"]["prompt_tokens"]),
    ],
)
def test_flags_of_serve_that_change_answers_change_these(folder: Folder, flags: list[str], read: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "logprobs": True}
    folder.write(line(url="/v1/chat/completions", **chat))
    answers = []
    for given in ([], flags):
        with start(*folder.flags, *given) as process:
            _, error = process.communicate(timeout=20)
        assert process.returncode == 0, error
        answers.append(read(folder.results()[0]["response"]["body"]))
    assert answers[0] != answers[1]


# ---- order and bounds ----


class Counting(FakeLLM):
    """Prompts are times in milliseconds; notes how many requests ran at once, and how many had begun."""

    most = 0
    begun = 0

    async def generate(self, prompt: Any, params: Any, request_id: str | None = None, **rest: Any) -> Any:
        self.begun += 1
        self.running.add(request_id)
        self.most = max(self.most, len(self.running))
        await asyncio.sleep(int(prompt) / 1000)
        async for output in super().generate(prompt, params, request_id, **rest):
            yield output


async def test_answers_keep_their_order_whatever_takes_longer(folder: Folder) -> None:
    llm = Counting()
    times = [40, 0, 20, 0, 1, 30, 0, 0]
    await answer(folder, llm, *(line(str(index), prompt=str(time)) for index, time in enumerate(times)), in_flight=3)
    assert [result["custom_id"] for result in folder.results()] == [str(index) for index in range(len(times))]
    assert llm.most == 3


async def test_one_request_at_a_time_is_possible(folder: Folder) -> None:
    llm = Counting()
    counts = await answer(folder, llm, *(line(prompt="0", max_tokens=1) for _ in range(20)), in_flight=1)
    assert (counts, llm.most) == ((20, 0), 1)


async def test_what_waits_for_an_earlier_answer_is_bounded(folder: Folder) -> None:
    llm = Counting()
    folder.write(line(prompt="60000"), *(line(prompt="0", max_tokens=1) for _ in range(200)))
    with (
        open_input(str(folder.input)) as source,
        Journal(place(folder), KEY) as journal,
        pytest.raises(TimeoutError),
    ):
        await asyncio.wait_for(work_on(llm, source, journal).run(), 0.5)
    assert llm.begun == 4 * 16
    assert llm.most == 4
    assert journal.num_answers == 0


async def test_long_lines_wait_for_those_that_run(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_server.batch.work._HELD_BYTES", 3_000)
    llm = Counting()
    long, short = ([line(prompt="20", max_tokens=1, user="x" * length) for _ in range(20)] for length in (2_000, 10))
    assert await answer(folder, llm, *long, in_flight=8) == (20, 0)
    assert llm.most == 2
    assert await answer(folder, llm, *short, in_flight=8) == (20, 0)
    assert llm.most == 8


async def test_a_long_input_is_not_held_in_memory(folder: Folder) -> None:
    """20 MB of lines that are wrong, so that nothing but reading and writing is measured."""
    wrong = json.dumps({"custom_id": "x", "text": "y" * 4000}) + "\n"
    folder.input.write_text(wrong * 5_000)
    tracemalloc.start()
    with open_input(str(folder.input)) as source, Journal(place(folder), KEY) as journal:
        await source.examine()
        await work_on(FakeLLM(), source, journal, in_flight=8).run()
    assert (source.num_lines, journal.num_answers, journal.num_failed) == (5_000, 5_000, 5_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 2**20


async def test_a_dead_engine_ends_the_work_and_is_no_answer(folder: Folder, llm: FakeLLM) -> None:
    llm.dead = True
    lines = [line("first", prompt="hi", temperature=-1), *(line(prompt="!dead") for _ in range(50))]
    with pytest.raises(EngineDead):
        await answer(folder, llm, *lines)
    assert not folder.output.exists()
    (partial,) = folder.partial
    assert [result["custom_id"] for result in folder.results(partial)] == ["first"]
    assert len(llm.calls) <= 8


# ---- settings ----


def test_options_that_serve_has_too_are_the_same() -> None:
    for name in AS_SERVED:
        ours, theirs = (config.__dataclass_fields__[name] for config in (BatchConfig, ServerConfig))
        assert (ours.default, ours.metadata, ours.type) == (theirs.default, theirs.metadata, theirs.type)


def test_the_documented_defaults() -> None:
    config = create_batch_config({"input_file": "a", "output_file": "b"})
    assert (config.url, config.port, config.response_role, config.max_log_len) == ("0.0.0.0", 8000, "assistant", None)
    assert (config.host, config.max_inflight) == (None, None)
    assert (config.enable_metrics, config.output_tmp_dir, config.enable_prompt_tokens_details) == (False, None, False)


def test_metrics_without_their_switch_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    create_batch_config({"input_file": "a", "output_file": "b", "port": 9000})
    assert [record.getMessage() for record in caplog.records] == ["port has no effect without --enable-metrics"]


def test_metrics_are_served_while_the_batch_runs() -> None:
    with metrics_server("127.0.0.1", 0, new_registry()) as port:
        assert "process_cpu_seconds_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_an_address_that_cannot_be_had_is_named() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError) as port_error,
        metrics_server("127.0.0.1", taken.getsockname()[1], new_registry()),
    ):
        pass
    assert port_error.value.field == "port"
    for host in ("no such host", "192.0.2.1"):
        with pytest.raises(ConfigError) as url_error, metrics_server(host, 0, new_registry()):
            pass
        assert url_error.value.field == "url"


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_leaves_what_is_answered(folder: Folder, number: int) -> None:
    folder.write(line("quick", prompt="hi", max_tokens=1), line("slow", prompt="hi", max_tokens=500))
    with start(*folder.flags, delay=0.05) as process:
        try:
            deadline = time.monotonic() + 20
            while not any(path.stat().st_size for path in folder.partial) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            out, error = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out.splitlines()[-1] == "engine closed, running=0, aborted=1"
    (partial,) = folder.partial
    assert (
        error == f"vllm run-batch: interrupted; 1 answers are in {partial}, and the same command goes on after them\n"
    )
    assert [result["custom_id"] for result in folder.results(partial)] == ["quick"]
    assert not folder.output.exists()


def test_a_signal_while_the_model_loads_leaves_nothing(folder: Folder) -> None:
    folder.write(line(prompt="hi"))
    with start(*folder.flags, start_delay=60) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("engine launched, multiprocess=True, imported=[]")
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, error) == (130, "vllm run-batch: interrupted; there is no answer yet\n")
    assert list(folder.path.iterdir()) == [folder.input]
