"""``--middleware``: the operator's classes and functions stand between access control and the routes."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import fake_serve
from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM, letters, sse_events
from tests.server.process import without_phases
from vllm_engine.errors import ConfigError
from vllm_server.access.user_middleware import load_middleware
from vllm_server.app import build_app
from vllm_server.serve import add_arguments, run

SOURCE = """
seen = []

class Stamp:
    def __init__(self, app, name="class"):
        self.app, self.name = app, name

    async def __call__(self, scope, receive, send):
        seen.append((self.name, scope["path"]))

        async def stamped(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", self.name.encode())]
            await send(message)

        await self.app(scope, receive, stamped)

class Failing(Stamp):
    async def __call__(self, scope, receive, send):
        raise RuntimeError("at 0x7f00deadbeef in /usr/lib/mine.py")

class Demanding:
    def __init__(self, app, table):
        pass

    async def __call__(self, scope, receive, send):
        pass

class Uncallable:
    def __init__(self, app):
        pass

async def stamp(request, call_next):
    seen.append(("function", request.url.path))
    response = await call_next(request)
    response.headers.append("x-stamp", "function")
    return response

async def lonely(request):
    pass

def plain(request, call_next):
    return call_next(request)

number = 5
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operator's module, importable as ``mine``."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "wrong.py").write_text("def (:\n")
    (tmp_path / "angry.py").write_text("raise OSError('two\\nlines')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("mine")
    for name in ("mine", "broken", "wrong", "angry"):
        sys.modules.pop(name, None)


def client_of(*paths: str, **options: Any) -> httpx.AsyncClient:
    return make_client(build_app(make_context(FakeLLM(), middleware=list(paths), **options)))


async def test_a_class_and_a_function_see_every_request_and_answer(mine: Any) -> None:
    async with client_of("mine:Stamp", "mine.stamp") as client:
        answer = await client.get("/v1/models")
        assert answer.headers.get_list("x-stamp") == ["class", "function"]
        # As after two calls of add_middleware: what was added last stands outside.
        assert mine.seen == [("function", "/v1/models"), ("class", "/v1/models")]
        for route, status in (("/nothing", 404), ("/health", 200)):
            answer = await client.get(route)
            assert (answer.status_code, answer.headers["x-stamp"]) == (status, "class, function")
        assert answer.headers["x-request-id"]


async def test_it_meets_no_request_without_a_key_and_no_preflight(mine: Any) -> None:
    async with client_of("mine.Stamp", "mine.stamp", api_key=["key"]) as client:
        for headers in ({}, {"x-api-key": "wrong"}):
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert "x-stamp" not in answer.headers
        asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        assert (await client.options("/v1/models", headers=asked)).status_code == 200
        assert mine.seen == []
        assert (await client.get("/v1/models", headers={"x-api-key": "key"})).status_code == 200
        assert len(mine.seen) == 2


async def test_its_failure_is_an_error_like_any_other(mine: Any) -> None:
    async with client_of("mine.Failing") as client:
        answer = await client.get("/v1/models", headers={"Origin": "http://page.example", "X-Request-Id": "mine"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "0x" not in answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("path", ["mine.Stamp", "mine.stamp"])
def test_streams_pass_through_it_and_end_when_their_client_leaves(mine: Any, path: str) -> None:
    llm = FakeLLM(delay=0.02)
    with running(make_context(llm, middleware=[path])) as url:
        body = {"prompt": "hi", "max_tokens": 5, "stream": True}
        events = list(sse_events(httpx.post(f"{url}/v1/completions", json=body).text))
        assert events[-1] == "[DONE]"
        assert len(events) == len(letters(5)) + 1
        with httpx.stream("POST", f"{url}/v1/completions", json={**body, "max_tokens": 400}) as response:
            next(response.iter_raw())
        for _ in range(300):
            if len(llm.aborted) == 1:
                break
            httpx.get(f"{url}/livez")
        assert len(llm.aborted) == 1


WRONG = [
    ("", "must be an import path"),
    ("mine", "must be an import path"),
    (".Stamp", "must be an import path"),
    ("mine..Stamp", "must be an import path"),
    ("mine.Nothing", "module mine has no Nothing"),
    ("mine:Stamp.Nothing", "module mine has no Stamp.Nothing"),
    ("no_such_module_of_mine.Stamp", "there is no module no_such_module_of_mine"),
    ("broken.Stamp", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    ("wrong.Stamp", "cannot be imported: module wrong raised SyntaxError"),
    ("angry.Stamp", "cannot be imported: module angry raised OSError: two lines"),
    ("mine.Demanding", "must be made from the application alone"),
    ("mine.Uncallable", "is a class without __call__"),
    ("mine.lonely", "must take two parameters"),
    ("mine.plain", "is neither a class nor a coroutine function"),
    ("mine.number", "is neither a class nor a coroutine function"),
    ("mine.seen", "is neither a class nor a coroutine function"),
]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("path", "fault"), WRONG, ids=[path for path, _ in WRONG])
def test_what_is_no_middleware_is_refused(path: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_middleware(["mine.Stamp", path])
    assert error.value.field == "middleware"
    assert fault in str(error.value)


@pytest.mark.usefixtures("mine", "own_logging")
def test_it_is_refused_in_one_line_before_the_engine_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_engine.async_llm", fake_serve.module())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = ["demo", "--port", "0", "--middleware", "mine.Stamp", "--middleware", "mine.Nothing"]
    assert run(parser.parse_args(flags)) == 2
    captured = capsys.readouterr()
    (line,) = without_phases(captured.err)
    assert line == "vllm serve: error: --middleware: module mine has no Nothing"
    assert "engine launched" not in captured.out
