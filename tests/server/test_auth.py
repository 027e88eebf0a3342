"""Access control: without a key nothing but the health routes answers, however the path is spelled."""

import argparse
import asyncio
import hmac
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM
from tests.server.process import Process
from vllm_engine.config.engine_args import check_options
from vllm_engine.errors import ConfigError
from vllm_server.api_keys import ApiKeys
from vllm_server.app import build_app
from vllm_server.config import ServerConfig, create_server_config
from vllm_server.serve import add_arguments, run

KEYS = ["first-Key!", "sk-0123456789abcdef"]
PUBLIC = ["/livez"]
GUARDED = [
    "/health",
    "/readyz",
    "/ping",
    "/v1/models",
    "/v1/models/fake",
    "/metrics",
    "/version",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/",
    "/nothing",
]


@pytest.fixture
def guarded(llm: FakeLLM) -> httpx.AsyncClient:
    return make_client(build_app(make_context(llm, api_key=KEYS)))


@pytest.fixture(scope="module")
def live_guarded() -> Iterator[str]:
    with running(make_context(FakeLLM(), api_key=KEYS)) as url:
        yield url


def check_refused(response: httpx.Response) -> None:
    assert response.status_code == 401
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("header", "shape"),
    [("Authorization", "Bearer {}"), ("authorization", "bearer  {}"), ("x-api-key", "{}"), ("X-API-Key", " {} ")],
)
async def test_each_key_opens_everything(guarded: httpx.AsyncClient, key: str, header: str, shape: str) -> None:
    headers = {header: shape.format(key)}
    for route in ("/v1/models", "/metrics", "/version", "/openapi.json", "/health"):
        assert (await guarded.get(route, headers=headers)).status_code == 200
    answer = await guarded.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": f"Bearer {KEYS[0][:-1]}"},
        {"Authorization": f"Bearer {KEYS[0]}x"},
        {"Authorization": f"Bearer {KEYS[0].lower()}"},
        {"Authorization": f"Bearer {','.join(KEYS)}"},
        {"Authorization": f"Bearer{KEYS[0]}"},
        {"x-api-key": f"Bearer {KEYS[0]}"},
        {"x-api-key": ""},
        {"x-api-key": "None"},
        {"api-key": KEYS[0]},
        {"Cookie": f"Authorization=Bearer {KEYS[0]}"},
    ],
    ids=str,
)
async def test_without_a_right_key_nothing_reaches_the_engine(
    guarded: httpx.AsyncClient, llm: FakeLLM, headers: dict[str, str]
) -> None:
    for route in GUARDED:
        check_refused(await guarded.get(route, headers=headers, params={"api_key": KEYS[0]}))
    check_refused(await guarded.post("/v1/completions", json={"prompt": "x"}, headers=headers))
    check_refused(await guarded.post("/v1/chat/completions", content=b"no JSON", headers=headers))
    assert llm.calls == []


async def test_only_whether_the_process_lives_needs_no_key(guarded: httpx.AsyncClient, llm: FakeLLM) -> None:
    for route in PUBLIC:
        assert (await guarded.get(route)).status_code == 200
    llm.dead = True
    assert (await guarded.get("/livez")).status_code == 503
    assert (await guarded.get("/health", headers={"x-api-key": KEYS[0]})).status_code == 503


async def test_no_keys_no_lock(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.get("/v1/models", headers={"x-api-key": "any"})).status_code == 200


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "NONSENSE"]


async def status_of(app: Any, path: str, method: str, root_path: str = "") -> int:
    """The status of the application's answer to a path as a server hands it over: decoded."""
    status = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": root_path,
        "headers": [(b"host", b"server")],
        "server": ("server", 80),
    }
    await app(scope, receive, send)
    return status[0]


_PIECES = ["/", "//", "v1", "V1", "models", "health", "Health", "livez", "readyz", "ping", "metrics", "docs", "llm"]
_PIECES += ["..", ".", "%2f", "%2e", "\\", ";", "?", "#", "\0", "\n", " ", "*", "http://server/", "completions", "é"]
PATHS = st.lists(st.sampled_from(_PIECES), max_size=8).map("".join) | st.text(max_size=30)


@pytest.mark.parametrize("root_path", [None, "/llm", "/health", "/v1/models"])
def test_no_spelling_of_a_path_gets_past(root_path: str | None) -> None:
    app = build_app(make_context(FakeLLM(), api_key=KEYS, root_path=root_path))
    open_paths = {prefix + path for prefix in ("", root_path or "") for path in PUBLIC}

    @settings(max_examples=150, deadline=None)
    @given(path=PATHS | PATHS.map(lambda path: f"{root_path or ''}{path}"), method=st.sampled_from(METHODS))
    def check(path: str, method: str) -> None:
        status = asyncio.run(status_of(app, path, method))
        assert status == 401 or path in open_paths, (path, method, status)

    check()


@pytest.mark.parametrize("root_path", ["/llm", "/health"])
async def test_behind_a_prefix_the_health_routes_are_open_under_both_paths(root_path: str) -> None:
    async with make_client(build_app(make_context(FakeLLM(), api_key=KEYS, root_path=root_path))) as client:
        assert (await client.get(f"{root_path}/livez")).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        for path in ("/v1/models", f"{root_path}/v1/models", f"{root_path}/livez/v1/models", f"{root_path}/"):
            check_refused(await client.get(path))
        answer = await client.get(f"{root_path}/v1/models", headers={"x-api-key": KEYS[0]})
        assert answer.status_code == 200


def raw(url: str, request: str) -> bytes:
    """What the server sends back for a request as it stands, up to the end of the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "///v1/models",
        "/v1//models",
        "/V1/Models",
        "/v1%2Fmodels",
        "/%76%31/models",
        "/%2576%2531/models",
        "/./v1/models",
        "/health/../v1/models",
        "/health/..%2fv1/models",
        "/health;/../v1/models",
        "/health%00/v1/models",
        "/health/",
        "/health%20",
        "//health",
        "/Health",
        "/v1/models?/health",
        "/v1/models#/health",
        "http://127.0.0.1/v1/models",
        "http://health/v1/models",
        "//health/../v1/models",
        "/metrics",
        "*",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_over_a_socket_no_spelling_gets_past_either(live_guarded: str, target: str, method: str) -> None:
    headers = (
        "Host: health\r\nConnection: close\r\nContent-Length: 0\r\nX-Original-URL: /health\r\nX-Forwarded-For: ::1\r\n"
    )
    status = raw(live_guarded, f"{method} {target} HTTP/1.1\r\n{headers}\r\n").split(b"\r\n", 1)[0]
    assert status in (b"HTTP/1.1 401 Unauthorized", b"HTTP/1.1 400 Bad Request"), status


def test_a_websocket_handshake_is_a_request_like_any_other(live_guarded: str) -> None:
    headers = "Host: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    answer = raw(live_guarded, f"GET /v1/models HTTP/1.1\r\n{headers}Sec-WebSocket-Key: eHh4\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_on_one_connection_each_request_shows_its_own_key(live_guarded: str) -> None:
    with httpx.Client(base_url=live_guarded) as client:
        assert client.get("/v1/models", headers={"x-api-key": KEYS[1]}).status_code == 200
        assert client.get("/v1/models").status_code == 401
        assert client.post("/v1/completions", content=b"x" * 1_000_000).status_code == 401
        assert client.get("/v1/models", headers={"x-api-key": KEYS[1]}).status_code == 200


def test_the_official_client_is_let_in_with_the_key_only(live_guarded: str) -> None:
    right = openai.OpenAI(base_url=f"{live_guarded}/v1", api_key=KEYS[1], max_retries=0)
    assert [model.id for model in right.models.list()] == ["fake", "alias"]
    wrong = openai.OpenAI(base_url=f"{live_guarded}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        wrong.models.list()
    assert error.value.code == "invalid_api_key"


def test_every_key_is_compared_even_after_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("vllm_server.api_keys.hmac.compare_digest", compare)
    keys = ApiKeys(["a", "b", "c" * 100])
    for candidate, right in ((b"a", True), (b"c" * 100, True), (b"", False), (b"\xff" * 5000, False)):
        compared.clear()
        assert keys.has(candidate) is right
        assert compared == [(32, 32)] * 3


def test_the_environment_is_asked_when_no_flag_is_given(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert create_server_config({}).api_key is None
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    assert create_server_config({}).api_key == ["from-environment"]
    assert create_server_config({"api_key": ["a", "b"]}).api_key == ["a", "b"]
    assert create_server_config({"api_key": "one"}).api_key == ["one"]
    assert caplog.messages == []
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert create_server_config({}).api_key is None
    assert caplog.messages == ["VLLM_API_KEY is set but empty: requests need no key"]


@pytest.mark.parametrize("key", ["", "se cret", "secret\n", "sécret", "secret\x7f", "\tsecret", "secret\0"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="api_key") as error:
        create_server_config({"api_key": ["good", key]})
    assert "cret" not in str(error.value)
    assert error.value.field == "api_key"
    if key and "\0" not in key:
        monkeypatch.setenv("VLLM_API_KEY", key)
        with pytest.raises(ConfigError, match="VLLM_API_KEY") as error:
            create_server_config({})
        assert "cret" not in str(error.value)


@pytest.mark.parametrize("value", [1234567, {"1234567": 1}, [["1234567"]], [1234567], "1234567\0", "1234567\ud800"])
def test_a_value_of_another_type_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(ConfigError, match="api_key must be a list, each a text") as error:
        check_options(ServerConfig, {"api_key": value})
    assert "1234567" not in str(error.value)
    assert error.value.__suppress_context__


def test_keys_of_a_file_are_keys_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    path = tmp_path / "keys"
    path.write_text("# of the first team\n geheim-1 \n\ngeheim-2\r\n")
    assert create_server_config({"api_key_file": str(path)}).api_key == ["geheim-1", "geheim-2"]
    assert create_server_config({"api_key_file": str(path), "api_key": ["a"]}).api_key == ["a", "geheim-1", "geheim-2"]
    assert "geheim" not in repr(create_server_config({"api_key_file": str(path)}))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "holds no key"),
        (b"# geheim\n\n", "holds no key"),
        (b"geheim 1\n", "key 1 holds spaces"),
        (b"ok\ngeh\xc3\xa9im\n", "key 2 holds spaces"),
        (b"geheim\xff", "it is no text"),
        (b"geheim\n" * 200_000, "too long"),
        (None, "No such file"),
    ],
)
def test_a_file_of_keys_that_cannot_be_is_refused_and_not_shown(
    content: bytes | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=fault) as error:
        create_server_config({"api_key_file": str(path)})
    assert error.value.field == "api_key_file"
    assert "geheim" not in str(error.value).replace(str(path), "")


def test_an_admin_key_comes_from_flag_or_environment_and_is_no_other_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ADMIN_API_KEY", "from-environment")
    assert create_server_config({}).admin_api_key == ["from-environment"]
    assert create_server_config({"admin_api_key": ["a", "b"]}).admin_api_key == ["a", "b"]
    for options in ({"admin_api_key": ["se cret"]}, {"admin_api_key": ["secret"], "api_key": ["a", "secret"]}):
        with pytest.raises(ConfigError, match="admin_api_key") as error:
            create_server_config(options)
        assert error.value.field == "admin_api_key"
        assert "cret" not in str(error.value)


@pytest.mark.usefixtures("own_logging")
def test_a_model_is_not_taken_for_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        assert run(parser.parse_args(arguments)) == 2
        return capsys.readouterr().err

    assert "name the model before it" in refused("--api-key", "geheim", "demo")
    assert "geheim" not in refused("--api-key", "geheim", "demo")
    for arguments in (["demo", "--api-key", "a", "b"], ["--api-key", "a", "b", "--model", "demo"], ["--api-key", "a"]):
        assert "--port" in refused(*arguments, "--port", "70000")


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    "text",
    ['api-key: "geheim\n', "api-key: 1234567\n", "api-key: geheim\n  x: y\n", "api-key: @geheim\n", "api-key: [geheim"],
)
def test_a_wrong_file_does_not_show_its_keys(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["demo", "--config", str(path)])) == 2
    error = capsys.readouterr().err
    assert "geheim" not in error
    assert "1234567" not in error


def test_the_settings_do_not_show_their_keys() -> None:
    assert "geheim" not in repr(ServerConfig(api_key=["geheim"]))


def test_the_process_tells_its_keys_nowhere(processes: list[Process]) -> None:
    flags = ["--api-key", "geheim-1", "geheim-2", "--api-key=geheim-3", "--uvicorn-log-level", "trace"]
    processes.append(process := Process(*flags))
    line = process.wait_for("try: curl")
    assert '-H "Authorization: Bearer $VLLM_API_KEY"' in line
    for key in ("geheim-1", "geheim-2", "geheim-3"):
        assert httpx.get(f"{process.url}/v1/models", headers={"x-api-key": key}).status_code == 200
    body = {"prompt": "!boom"}
    assert httpx.post(f"{process.url}/v1/completions", json=body, headers={"x-api-key": "geheim-1"}).status_code == 500
    refused = httpx.get(f"{process.url}/v1/models", headers={"Authorization": "Bearer geheim-4"})
    assert refused.status_code == 401
    assert "geheim" not in refused.text
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert any("401" in line for line in process.log)
    assert not [line for line in (*process.lines, *process.log) if "geheim" in line]


def test_without_a_key_the_refusal_is_no_error_of_the_log(live_guarded: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert httpx.get(f"{live_guarded}/v1/models").status_code == 401
    assert caplog.messages == []
