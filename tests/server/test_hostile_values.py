"""Every hostile value in every field of every route: answered or refused, soon, and without a word of the inside."""

import asyncio
import json
import time
from typing import Any

import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from tests.server.hostile import HUGE, LARGE, LEAK, NO_JSON, SMALL, Request, requests
from vllm_engine.errors import InvalidRequest
from vllm_server.app import build_app
from vllm_server.json_body import parse_object

SECONDS = 2.0
"""Of processor time, which any of these may take."""


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    return build_app(make_context(FakeLLM(), enable_tokenizer_info_endpoint=True, enable_server_load_tracking=True))


async def description_of(app: Any) -> dict[str, Any]:
    async with make_client(app) as client:
        described: dict[str, Any] = (await client.get("/openapi.json")).json()
        return described


async def answer(app: Any, request: Request, content_type: bytes = b"application/json") -> tuple[int, str]:
    """Status and body of the answer, without the cost of a client."""
    sent: list[dict[str, Any]] = []
    pieces = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"server"), (b"content-type", content_type)],
        "server": ("server", 80),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body.decode()


def fault_of(status: int, body: str, seconds: float) -> str | None:
    """What is wrong with an answer."""
    if status not in (200, 400, 404, 413):
        return f"{status} {body[:500]}"
    if LEAK.search(body):
        return f"tells of the inside: {body[:500]}"
    if seconds > SECONDS:
        return f"took {seconds:.1f} s"
    if status != 200:
        message = json.loads(body)["error"]["message"]
        if not isinstance(message, str) or not 0 < len(message) < 2500:
            return f"{len(message)} characters of message: {message[:200]}"
    return None


async def ask_all(app: Any, values: dict[str, bytes], *, refused: bool = False) -> int:
    count, faults = 0, []
    for request in requests(await description_of(app), values):
        begun = time.process_time()
        status, body = await answer(app, request)
        seconds = time.process_time() - begun
        if fault := fault_of(status, body, seconds) or ("taken" if refused and status != 400 else None):
            faults.append(f"{request}: {fault}")
        count += 1
    assert faults[:20] == []
    return count


async def test_each_small_value_in_each_field_is_answered_or_refused(app: Any) -> None:
    count = await ask_all(app, SMALL)
    assert count > 40 * len(SMALL)


async def test_what_is_no_json_is_refused_wherever_it_stands(app: Any) -> None:
    await ask_all(app, NO_JSON, refused=True)


async def test_each_large_value_in_each_field_is_answered_or_refused(app: Any) -> None:
    await ask_all(app, LARGE)


@pytest.mark.parametrize("name", [name for name in HUGE if "exponents" in name or "millions" in name])
def test_what_takes_long_to_read_is_not_read(name: str) -> None:
    body = b'{"prompt": "a", "logprobs": ' + HUGE[name] + b"}"
    with pytest.raises(InvalidRequest, match=r"numbers with exponents|lists and objects"):
        parse_object(body)


@pytest.mark.parametrize(
    "text",
    [
        "1e307, 1e308] " * 900,  # as many as may be
        "5e-05, 1e-06, " * 10_000,
        "3e1 e307, 0x1e307x 1e307.. " * 20_000,
        "1e23, " * 20_000,
        "ab12e345cd" * 50_000,
    ],
)
def test_texts_and_ordinary_numbers_are_read(text: str) -> None:
    assert parse_object(json.dumps({"prompt": text}).encode())["prompt"] == text
    ordinary = {str(token): 1e-5 * token for token in range(5000)}
    assert parse_object(json.dumps({"logit_bias": ordinary}).encode())["logit_bias"] == ordinary
