"""What the log tells of requests: their facts as fields, what was generated where that is wanted, and no secrets."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM, letters
from tests.server.process import Process
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_engine.logging import JsonFormatter, LineFormatter
from vllm_server.app import build_app
from vllm_server.config import create_server_config
from vllm_server.relations import check_relations_to_engine

KEY = "sk-a-key-of-nobody-else"
SECRET = "what-only-the-client-knows"


def logging_llm() -> FakeLLM:
    llm = FakeLLM()
    llm.config = EngineArgs("fake/model", served_model_name=["fake"], enable_log_requests=True).create_config()
    return llm


@contextmanager
def written(formatter: logging.Formatter) -> Iterator[list[str]]:
    """The lines of our loggers, as a formatter writes them."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(formatter)
    logger = logging.getLogger("vllm_server")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


async def test_each_request_ends_with_a_line_of_its_facts_and_none_of_its_contents() -> None:
    with written(JsonFormatter()) as lines:
        async with make_client(build_app(make_context(logging_llm(), api_key=[KEY]))) as client:
            headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine"}
            body = {"prompt": [SECRET, "hi"], "max_tokens": 3, "n": 2, "cache_salt": SECRET, "user": SECRET}
            for stream in (False, True):
                await client.post("/v1/completions", json={**body, "stream": stream}, headers=headers)
            await client.post("/v1/completions", json={"prompt": SECRET, "top_p": 7}, headers=headers)
            await client.post("/v1/completions", json={"prompt": "!fail-after-3", "stream": True}, headers=headers)
            await client.post(f"/nowhere?{SECRET}", json=body, headers=headers)
            await client.post("/v1/completions", json=body)
            await client.get("/health")
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 6
    assert all(KEY not in line and SECRET not in line for line in lines)
    whole, stream, wrong, broken, lost, stranger = entries
    for entry in (whole, stream):
        expected = {
            "request_id": "mine",
            "method": "POST",
            "route": "/v1/completions",
            "status": 200,
            "complete": True,
            "prompt_tokens": len(SECRET) + 1 + 3,
            "generated_tokens": 12,
            "finish_reason": "length",
            "event": "request",
            "level": "INFO",
        }
        assert {name: entry[name] for name in expected} == expected
        phases = ("preparation", "queue", "prefill", "decode", "delivery")
        assert sum(entry[f"{phase}_time"] for phase in phases) == pytest.approx(entry["total_time"], abs=1e-6)
        assert entry["response_id"].startswith("cmpl-")
    assert (wrong["status"], wrong["error"], "prompt_tokens" in wrong) == (400, "InvalidRequest", False)
    assert (broken["status"], broken["error"], broken["generated_tokens"]) == (200, "RequestFailed", 3)
    assert (lost["status"], lost["route"]) == (404, "unknown")
    assert (stranger["status"], stranger["route"]) == (401, "unknown")


async def test_a_client_that_goes_away_is_seen_in_the_log() -> None:
    llm = logging_llm()
    llm.delay = 0.01
    with written(JsonFormatter()) as lines, running(make_context(llm)) as url:
        with httpx.stream(
            "POST", f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 300, "stream": True}
        ) as it:
            next(it.iter_lines())
        async with httpx.AsyncClient() as client:
            for _ in range(100):
                if any('"event": "request"' in line for line in lines):
                    break
                await client.get(f"{url}/livez")
    (entry,) = [json.loads(line) for line in lines if '"event": "request"' in line]
    assert (entry["status"], entry["complete"]) == (200, False)
    assert 0 < entry["generated_tokens"] < 300


async def test_what_a_client_that_goes_away_waited_for_is_counted() -> None:
    llm = logging_llm()
    llm.delay = 0.01
    with written(JsonFormatter()) as lines, running(make_context(llm)) as url:
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 300}, timeout=0.3)
            for _ in range(100):
                if ended := [line for line in lines if '"event": "request"' in line]:
                    break
                await client.get(f"{url}/livez")
    entry = json.loads(ended[0])
    assert (entry["status"], entry["complete"], entry["prompt_tokens"]) == (499, False, 2)
    assert 0 < entry["generated_tokens"] < 300


async def test_a_response_in_the_background_is_told_of_when_it_has_ended() -> None:
    llm = logging_llm()
    llm.delay = 0.01
    context = make_context(llm, enable_log_outputs=True, enable_log_deltas=False, log_error_stack=True)
    with written(JsonFormatter()) as lines:
        async with make_client(build_app(context)) as client:
            for text in ("hi", "!fail-after-3"):
                num_lines = len(lines)
                llm.may_begin.clear()
                body = {"input": text, "max_output_tokens": 4, "background": True}
                made = (await client.post("/v1/responses", json=body)).json()
                assert (made["status"], len(lines)) == ("queued", num_lines)
                llm.may_begin.set()
                while (await client.get(f"/v1/responses/{made['id']}")).json()["status"] in ("queued", "in_progress"):
                    await asyncio.sleep(0.01)
    output, whole, stack, partial, broken = [json.loads(line) for line in lines]
    assert (output["event"], output["text"]) == ("output", letters(4))
    assert (whole["event"], whole["status"], whole["finish_reason"]) == ("request", 200, "length")
    assert whole["generated_tokens"] == 4 and whole["decode_time"] > 0.01
    assert "RequestFailed" in json.dumps(stack)
    assert (partial["event"], partial["text"]) == ("output", letters(3))
    assert (broken["error"], broken["generated_tokens"]) == ("RequestFailed", 3)


async def test_without_the_flag_no_request_is_logged() -> None:
    with written(LineFormatter("%(message)s")) as lines:
        async with make_client(build_app(make_context(FakeLLM()))) as client:
            await client.post("/v1/completions", json={"prompt": "hi"})
            await client.post("/v1/completions", json={"prompt": "!invalid"})
    assert lines == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "outputs", "deltas"),
    [
        ({}, [], 0),
        ({"enable_log_outputs": True}, [letters(4), letters(4, 1)], 8),
        ({"enable_log_outputs": True, "enable_log_deltas": False}, [letters(4), letters(4, 1)], 0),
        ({"enable_log_outputs": True, "enable_log_deltas": False, "max_log_len": 2}, ["ab", "bc"], 0),
    ],
)
async def test_what_is_generated_is_logged_where_that_is_wanted(
    options: dict[str, Any], outputs: list[str], deltas: int, stream: bool
) -> None:
    with written(JsonFormatter()) as lines:
        async with make_client(build_app(make_context(logging_llm(), **options))) as client:
            await client.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 4, "n": 2, "stream": stream})
    entries = [json.loads(line) for line in lines]
    assert [entry["text"] for entry in entries if entry["event"] == "output"] == outputs
    assert [len(entry["token_ids"]) for entry in entries if entry["event"] == "output"] == [len(it) for it in outputs]
    assert sum(entry["event"] == "delta" for entry in entries) == (deltas if stream else 0)
    assert not any(SECRET in line for line in lines)


def test_outputs_are_logged_only_beside_their_requests() -> None:
    server = create_server_config({"enable_log_outputs": True})
    with pytest.raises(ConfigError, match="enable_log_requests") as caught:
        check_relations_to_engine(server, EngineArgs("fake/model").create_config())
    assert caught.value.field == "enable_log_outputs"
    check_relations_to_engine(server, EngineArgs("fake/model", enable_log_requests=True).create_config())


@pytest.mark.parametrize("shown", [False, True])
async def test_the_stacks_of_errors_are_logged_where_that_is_wanted(shown: bool) -> None:
    with written(LineFormatter("%(message)s")) as lines:
        async with make_client(build_app(make_context(FakeLLM(), log_error_stack=shown))) as client:
            assert (await client.post("/v1/completions", json={"prompt": "!invalid"})).status_code == 400
            await client.post("/v1/completions", json={"prompt": "!fail-after-3", "stream": True})
            await client.post("/v1/completions", json={"prompt": "hi"})
    assert len(lines) == (2 if shown else 0)
    for line in lines:
        assert "\n    Traceback (most recent call last)" in line
    assert [re.findall(r"(InvalidRequest|RequestFailed): ", line) for line in lines] == (
        [["InvalidRequest"], ["RequestFailed"]] if shown else []
    )


HOSTILE = "a\nERROR 11-21 00:00:00 [vllm_server] forged\r\x1b[31m\x00\u2028\u202e\x85"


def test_no_text_of_a_client_can_forge_a_line() -> None:
    record = logging.LogRecord("vllm_server", logging.INFO, "", 1, "it says %s", (HOSTILE,), None)
    text = LineFormatter("%(levelname)s %(message)s").format(record)
    first, second = text.split("\n")
    assert first == "INFO it says a"
    assert second.startswith("    ERROR 11-21")
    assert text.replace("\n", "").isprintable()
    line = JsonFormatter().format(record)
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == f"it says {HOSTILE}"


@pytest.mark.parametrize("formatter", [LineFormatter("%(levelname)s %(message)s"), JsonFormatter()])
async def test_no_path_label_model_or_text_of_a_request_forges_a_line(formatter: logging.Formatter) -> None:
    with written(formatter) as lines:
        options = {"enable_log_outputs": True, "log_error_stack": True}
        async with make_client(build_app(make_context(logging_llm(), **options))) as client:
            for body in (
                {"prompt": HOSTILE, "max_tokens": 1, "stop": HOSTILE, "request_id": HOSTILE},
                {"prompt": "x", "max_tokens": 1, "model": HOSTILE},
                {"prompt": "x", "max_tokens": 1, HOSTILE: 1},
                {"prompt": "x", "max_tokens": 1, "stop": HOSTILE},
            ):
                await client.post("/v1/completions", json=body)
            await client.post("/a%0aERROR%20forged", json={})
    assert len(lines) >= 5
    for line in "\n".join(lines).split("\n"):
        assert line.isprintable()
        assert line.startswith(("INFO request", "ERROR request", "    ", "{"))


def test_lines_of_some_paths_and_secrets_of_queries_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"disable_access_log_for_endpoints": ["/health", "/metrics"], "root_path": "/llm"}
    with running(make_context(FakeLLM(), **options)) as url:
        for path in (
            "/health",
            "/llm/health",
            "/health?a=b",
            "/livez?api_key=sk-1&x=1&Token=2",
            "/healthy",
            "/a%0ab%20c",
        ):
            httpx.get(url + path)
    paths = [record.args[2] for record in caplog.records if record.name == "uvicorn.access"]  # type: ignore[index]
    assert paths == ["/livez?api_key=***&x=1&Token=***", "/healthy", "/a%0Ab%20c"]


@pytest.mark.parametrize("value", ["health", "/a b", ""])
def test_paths_without_lines_are_paths(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server_config({"disable_access_log_for_endpoints": [value]})
    assert caught.value.field == "disable_access_log_for_endpoints"


def test_a_process_logs_json_and_never_a_key(processes: list[Process]) -> None:
    """At the level that shows every message of the connection."""
    flags = ["--log-format", "json", "--enable-log-requests", "--uvicorn-log-level", "trace", "--api-key", KEY]
    processes.append(process := Process(*flags))
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        answer = httpx.post(f"{process.url}/v1/completions", json={"prompt": SECRET, "max_tokens": 2}, headers=headers)
        assert answer.status_code == 200
    process.signal(15)
    assert process.end() == 0
    entries = [json.loads(line) for line in process.log if "start-up" not in line]
    assert {"uvicorn.access", "uvicorn.asgi", "vllm_server.telemetry.request_log"} <= {it["logger"] for it in entries}
    assert sum(entry.get("event") == "request" for entry in entries) == 2
    assert not any(KEY in line or SECRET in line for line in process.log)


def test_a_log_has_one_form(tmp_path: Any, processes: list[Process]) -> None:
    (tmp_path / "log.json").write_text('{"version": 1}')
    processes.append(process := Process("--log-format", "json", "--log-config-file", str(tmp_path / "log.json")))
    assert process.end() == 2
    (line,) = process.log
    assert "--log-format and --log-config-file exclude each other" in line
