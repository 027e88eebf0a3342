"""The table of routes: each, with each kind of key, in every spelling that has ever got past somebody's lock.

The routes are those that the application has, found by walking it: a new one is in the table without a word here.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM
from vllm_server.app import build_app
from vllm_server.routes.direct_route import DirectRoute

KEY, ADMIN = "right-key", "admin-key"
OPEN = {"/livez"}
DEVELOPMENT = {
    *("/sleep", "/release_kv_cache_memory", "/wake_up", "/is_sleeping"),
    *("/server_info", "/reset_prefix_cache", "/collective_rpc"),
}
PROFILER = ["/start_profile", "/stop_profile"]  # in this order
DOCUMENTED_ADMIN = {*DEVELOPMENT, *PROFILER}
EVERYTHING = {"enable_tokenizer_info_endpoint": True, "enable_server_load_tracking": True}
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", ""]


def routes_of(app: Any) -> list[Route]:
    """The routes behind the middleware."""
    while not isinstance(app, FastAPI):
        app = app.app
    return [route for route in flat(app.routes) if isinstance(route, Route)]


def flat(routes: Any) -> Iterator[Any]:
    """Routes, and those of routers among them."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from flat(inner.routes) if inner is not None else [route]


@pytest.fixture(autouse=True)
def development(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", "profiles")


class Probe:
    """One application and its scripted engine; says what a request got, and whether anything happened."""

    def __init__(self, **options: Any) -> None:
        self.llm = FakeLLM()
        self.app = build_app(make_context(self.llm, **EVERYTHING, **options))

    @property
    def paths(self) -> list[str]:
        return sorted({route.path.replace("{name:path}", "fake") for route in routes_of(self.app)})

    def ask(self, method: str, path: str, key: str | None = None, *headers: tuple[bytes, bytes], **scope: Any) -> int:
        """The status for a path as a web server hands it over, decoded. A 101 or a second answer would be an error."""
        sent: list[dict[str, Any]] = []
        body = json.dumps({"prompt": "x", "messages": [], "tokens": [], "max_tokens": 1}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        given = [(b"x-api-key", key.encode())] if key is not None else []
        whole = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path, safe="/%").encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"server"), *given, *headers],
            "server": ("server", 80),
            **scope,
        }
        asyncio.run(self.app(whole, receive, send))
        starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
        assert len(starts) == 1, sent
        return starts[0]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        yield
        assert self.llm.calls == []
        assert self.llm.control_calls == []


def spellings(path: str) -> list[str]:
    """Other ways to write a path, which a router, a proxy or a lock may each read in its own way."""
    first, *_ = path.strip("/").split("/")
    letter = f"%{ord(path[1]):02x}" if len(path) > 1 else "%2f"
    return [
        path,
        f"/{path}",
        f"//{path}",
        f"{path}/",
        f"{path}//",
        f"/.{path}",
        f"/x/..{path}",
        f"/livez/..{path}",
        f"/livez/../..{path}",
        f"/livez;{path}",
        f"/livez{path}",
        f"{path};x",
        f"/{first};x{path.removeprefix('/' + first)}",
        f"{path};/livez",
        f"{path}?/livez",
        f"{path}#/livez",
        f"{path}/livez",
        f"{path}/../livez",
        f"{path}\0",
        f"{path}\0/livez",
        f"{path}%00",
        f"{path} ",
        f"{path}\t",
        f"{path}\n",
        f"{path}.json",
        f"{path}.",
        f"{path}*",
        path.upper(),
        path.title(),
        path.replace("/", "\\"),
        path.replace("/", "%2f"),
        path.replace("/", "%252f"),
        path.replace("/", "／"),  # a slash of another script
        path.replace("/", "/./"),
        f"/{letter}{path[2:]}",
        f"/%25{letter[1:]}{path[2:]}",
        f"http://server{path}",
        f"http:{path}",
        f"//server{path}",
        f"/llm{path}",
        path.removeprefix("/"),
        "*",
        "",
    ]


def test_the_table_holds_the_routes() -> None:
    paths = set(Probe().paths)
    assert {"/v1/completions", "/v1/models", "/v1/models/fake", "/metrics", "/openapi.json", "/docs", "/load"} <= paths
    assert paths >= OPEN | DOCUMENTED_ADMIN


@pytest.mark.parametrize("root_path", [None, "/llm", "/livez"])
@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), f"{KEY},{KEY}", f"Bearer {KEY}"])
def test_nothing_is_served_without_a_right_key(root_path: str | None, key: str | None) -> None:
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN], root_path=root_path)
    prefixes = ["", root_path] if root_path else [""]
    open_paths = {f"{prefix}{path}" for prefix in prefixes for path in OPEN}
    for path in (f"{prefix}{path}" for path in probe.paths for prefix in prefixes):
        for method in METHODS if key is None else ["GET", "POST"]:
            status = probe.ask(method, path, key)
            assert status == 401 or path in open_paths, (method, path, status)
    assert probe.llm.calls == probe.llm.control_calls == []


@pytest.mark.parametrize("root_path", [None, "/llm"])
def test_no_spelling_of_a_path_opens_it(root_path: str | None) -> None:
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN], root_path=root_path)
    open_paths = {f"{prefix}{path}" for prefix in ("", root_path or "") for path in OPEN}
    with probe.untouched():
        for path in probe.paths:
            for spelling in {*spellings(path), *(f"{root_path or ''}{other}" for other in spellings(path))}:
                for method in ("GET", "POST"):
                    status = probe.ask(method, spelling)
                    assert status == 401 or spelling in open_paths, (method, spelling, status)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-http-method-override": "GET", "x-http-method": "GET", "x-method-override": "GET"},
        {"x-original-url": "/livez", "x-rewrite-url": "/livez", "x-forwarded-uri": "/livez"},
        {"x-forwarded-prefix": "/livez", "x-script-name": "/livez", "x-forwarded-path": "/livez"},
        {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "forwarded": "for=127.0.0.1", "via": "1.1 me"},
        {"host": "livez", "x-forwarded-host": "livez/livez", "origin": "http://127.0.0.1"},
        {"host": "server/livez?", "referer": "http://server/livez"},
        {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"},
        {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings", "http2-settings": "AAMAAABkAAQAAP__"},
        {"authorization": f"Basic {KEY}", "cookie": f"x-api-key={KEY}", "proxy-authorization": f"Bearer {KEY}"},
        {"x-api-key ": KEY, "x_api_key": KEY, "api-key": KEY},
        {"authorization": f"bearer{KEY}", "x-authorization": f"Bearer {KEY}"},
        {"authorization": "Bearer null", "x-api-key": "undefined"},
        {"te": "trailers", "trailer": "x-api-key", "content-length": "0"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_no_header_stands_for_a_key(headers: dict[str, str]) -> None:
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN])
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    with probe.untouched():
        for path in probe.paths:
            for method in ("GET", "POST"):
                status = probe.ask(method, path, None, *raw)
                assert status == 401 or path in OPEN, (method, path, status)


def test_keys_stand_in_headers_only() -> None:
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN])
    for path in probe.paths:
        for query in (
            f"api_key={KEY}",
            f"key={KEY}",
            f"x-api-key={KEY}",
            f"access_token={KEY}",
            f"root_path=/livez/{KEY}",
        ):
            status = probe.ask("GET", path, query_string=query.encode())
            assert status == 401 or path in OPEN, (path, query, status)


@pytest.mark.parametrize("key", [KEY, ADMIN])
def test_a_right_key_opens_what_is_no_operators_business(key: str) -> None:
    probe = Probe(api_key=[KEY, "another"], admin_api_key=["other-admin", ADMIN])
    for path in sorted(set(probe.paths) - DOCUMENTED_ADMIN):
        statuses = {probe.ask(method, path, key) for method in ("GET", "POST")}
        assert not statuses & {401, 403, 500}, (path, statuses)
        assert statuses - {405}, path


def test_routes_for_operators_open_for_admin_keys_only() -> None:
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN])
    plain = Probe(api_key=[KEY])
    for path in (*DEVELOPMENT, *PROFILER):
        method = next(method for method in ("GET", "POST") if plain.ask(method, path, KEY) != 405)
        with probe.untouched():
            assert [probe.ask(method, path, key) for key in (None, "wrong", KEY)] == [401, 401, 403]
            # Whatever the method and the spelling: 403, no such route, or not with this method.
            for spelling in spellings(path):
                for other in ("GET", "POST", "HEAD", "DELETE"):
                    status = probe.ask(other, spelling, KEY)
                    assert status in (403, 404, 405, 307) or spelling in OPEN, (other, spelling, status)
        assert probe.ask(method, path, ADMIN) not in (401, 403)
        both = probe.ask(method, path, KEY, (b"authorization", f"Bearer {ADMIN}".encode()))
        # Profiling begins and ends once, and this body names no method.
        assert both == (400 if path in (*PROFILER, "/collective_rpc") else 200)
        probe.llm.control_calls.clear()


def test_what_exists_in_development_only_is_for_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that somebody adds to those for development cannot be forgotten."""
    in_development = set(Probe().paths)
    with monkeypatch.context() as patch:
        patch.delenv("VLLM_SERVER_DEV_MODE")
        patch.delenv("VLLM_TORCH_PROFILER_DIR")
        extra = in_development - set(Probe().paths)
    assert extra >= DOCUMENTED_ADMIN
    probe = Probe(api_key=[KEY], admin_api_key=[ADMIN])
    for path in extra:
        assert {probe.ask(method, path, KEY) for method in ("GET", "POST", "PUT", "DELETE")} <= {403, 405}, path


def test_with_an_admin_key_alone_the_rest_needs_none() -> None:
    probe = Probe(admin_api_key=[ADMIN])
    assert probe.ask("GET", "/v1/models") == 200
    assert probe.ask("GET", "/v1/models", "any") == 200
    with probe.untouched():
        assert {probe.ask(method, path) for path in DOCUMENTED_ADMIN for method in ("GET", "POST")} == {401, 405}
    assert probe.ask("POST", "/reset_prefix_cache", ADMIN) == 200


def test_without_an_admin_key_every_key_opens_what_there_is() -> None:
    assert Probe(api_key=[KEY]).ask("POST", "/reset_prefix_cache", KEY) == 200
    assert Probe().ask("POST", "/reset_prefix_cache") == 200


def test_a_websocket_is_closed_without_a_key_and_led_nowhere_with_one() -> None:
    for key in (None, KEY, ADMIN):
        probe = Probe(api_key=[KEY], admin_api_key=[ADMIN])
        for path in (*probe.paths, "/ws", "/v1/realtime"):
            sent: list[dict[str, Any]] = []

            async def receive() -> dict[str, Any]:
                return {"type": "websocket.connect"}

            async def send(message: Any, sent: list[dict[str, Any]] = sent) -> None:
                sent.append(message)

            headers = [(b"x-api-key", key.encode())] if key else []
            scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"",
                     "root_path": "", "headers": headers, "subprotocols": [], "scheme": "ws"}  # fmt: skip
            asyncio.run(probe.app(scope, receive, send))
            assert [message["type"] for message in sent] == ["websocket.close"], (key, path, sent)


@pytest.fixture(scope="module")
def live() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_TORCH_PROFILER_DIR", "profiles")
        with running(make_context(FakeLLM(), api_key=[KEY], admin_api_key=[ADMIN], **EVERYTHING)) as url:
            yield url


async def raw_status(url: str, request: bytes) -> bytes:
    """The status line of the answer to a request as it stands."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.readline(), 10)
    finally:
        writer.close()


async def test_over_a_socket_each_route_in_each_spelling_is_refused(live: str) -> None:
    """What uvicorn makes of the request line is part of the lock."""
    paths = Probe().paths
    lines = {
        f"{method} {target} HTTP/1.1"
        for path in paths
        for spelling in [*spellings(path), f"{live}{path}", f"http://evil/{path}", f"https://livez{path}"]
        for target in [quote(spelling, safe="/%:;?#*\\.") or "/", spelling]
        for method in ("GET", "POST")
    }
    gate = asyncio.Semaphore(64)

    async def check(line: str) -> None:
        async with gate:
            request = f"{line}\r\nHost: livez\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            status = await raw_status(live, request)
        target = line.split(" ", 1)[1].removesuffix(" HTTP/1.1").removeprefix(live)
        path = target.split("?")[0].split("#")[0]
        refused = status.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
        assert refused or is_open(path), (line, status)

    await asyncio.gather(*(check(line) for line in lines))


def is_open(target: str) -> bool:
    """Whether a target is an open path, once a server has decoded it and taken off scheme and host."""
    target = target.rstrip(" ")  # what a parser takes for the space before the version
    return unquote(urlsplit(target).path if "://" in target else target) in OPEN


async def test_a_lock_on_a_router_holds_for_routes_that_are_called_directly() -> None:
    """``DirectRoute`` passes FastAPI by, but never a dependency: its own, its router's, or that of an inclusion."""

    def refuse() -> None:
        raise HTTPException(403)

    def router(**lock: Any) -> APIRouter:
        made = APIRouter(route_class=DirectRoute, **lock)

        @made.get("/thing")
        async def thing(raw: Request) -> Response:
            return Response("served")

        return made

    locks = [Depends(refuse)]
    for made, lock, status in ((router(), None, 200), (router(), locks, 403), (router(dependencies=locks), None, 403)):
        app = FastAPI()
        app.include_router(made, dependencies=lock)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            assert (await client.get("/thing")).status_code == status
