"""CORS as a browser sees it: preflight answers, and the headers without which a page reads no answer."""

from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.errors import ConfigError
from vllm_server.app import build_app
from vllm_server.config import create_server_config

PAGE = "https://page.example"
OTHER = "https://other.example"


def client_of(**options: Any) -> httpx.AsyncClient:
    return make_client(build_app(make_context(FakeLLM(), **options)))


async def preflight(
    client: httpx.AsyncClient, origin: str = PAGE, method: str = "POST", headers: str = "authorization, content-type"
) -> httpx.Response:
    """What a browser asks before it sends JSON or a key to another origin."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return await client.options("/v1/chat/completions", headers=asked)


def readable_by(response: httpx.Response, origin: str, *, with_credentials: bool = False) -> bool:
    """Whether a browser gives the answer to a page of ``origin``: the CORS check of the fetch standard."""
    allowed = response.headers.get_list("access-control-allow-origin")
    if with_credentials:
        return allowed == [origin] and response.headers.get_list("access-control-allow-credentials") == ["true"]
    return allowed in (["*"], [origin])


def lets(response: httpx.Response, method: str, *headers: str) -> bool:
    """Whether a browser goes on after this preflight answer with a method and headers, without credentials."""
    methods = [item.strip() for item in response.headers.get("access-control-allow-methods", "").split(",")]
    names = [item.strip().lower() for item in response.headers.get("access-control-allow-headers", "").split(",")]
    named = method in (*methods, "GET", "HEAD", "POST") or "*" in methods
    return response.is_success and named and set(headers) <= set(names)


async def test_by_default_every_page_may_call() -> None:
    async with client_of() as client:
        answer = await preflight(client, headers="authorization, content-type, x-request-id")
        assert readable_by(answer, PAGE)
        assert lets(answer, "POST", "authorization", "content-type", "x-request-id")
        assert lets(await preflight(client, method="DELETE"), "DELETE")
        assert readable_by(await client.get("/v1/models", headers={"Origin": PAGE}), PAGE)
        assert not readable_by(answer, PAGE, with_credentials=True)


async def test_only_named_origins_may_call() -> None:
    async with client_of(allowed_origins=[PAGE, "http://localhost:3000"]) as client:
        for origin in (PAGE, "http://localhost:3000"):
            assert readable_by(await preflight(client, origin), origin)
            answer = await client.get("/v1/models", headers={"Origin": origin})
            assert readable_by(answer, origin)
            assert "origin" in answer.headers["vary"].lower()
        for origin in (OTHER, "http://page.example", f"{PAGE}:444", f"{PAGE}.evil.example", "null", "http://localhost"):
            refused = await preflight(client, origin)
            assert not refused.is_success
            assert not readable_by(refused, origin)
            assert not readable_by(await client.get("/v1/models", headers={"Origin": origin}), origin)


async def test_only_named_methods_and_headers_may_be_used() -> None:
    async with client_of(allowed_methods=["post", "GET"], allowed_headers=["X-Api-Key"]) as client:
        assert lets(await preflight(client, headers="x-api-key"), "POST", "x-api-key")
        assert lets(await preflight(client, headers="content-type,x-api-key"), "POST", "content-type")
        assert not lets(await preflight(client, headers="authorization"), "POST", "authorization")
        assert not lets(await preflight(client, method="DELETE", headers="x-api-key"), "DELETE")


async def test_credentials_are_taken_from_named_origins_only() -> None:
    async with client_of(allow_credentials=True, allowed_origins=[PAGE]) as client:
        assert readable_by(await preflight(client), PAGE, with_credentials=True)
        headers = {"Origin": PAGE, "Cookie": "session=1"}
        assert readable_by(await client.get("/v1/models", headers=headers), PAGE, with_credentials=True)
        for answer in (await preflight(client, OTHER), await client.get("/health", headers={"Origin": OTHER})):
            assert not readable_by(answer, OTHER, with_credentials=True)
            assert not readable_by(answer, OTHER)


@pytest.mark.parametrize(
    ("method", "route", "fields", "status"),
    [
        ("POST", "/v1/completions", {"json": {"prompt": "x", "max_tokens": 1}}, 200),
        ("POST", "/v1/completions", {"json": {"prompt": "x", "max_tokens": 1, "stream": True}}, 200),
        ("POST", "/v1/completions", {"json": {"prompt": 1}}, 400),
        ("POST", "/v1/completions", {"content": b"{", "headers": {"content-type": "text/plain"}}, 415),
        ("POST", "/v1/completions", {"json": {"prompt": "!overloaded"}}, 429),
        ("POST", "/v1/completions", {"json": {"prompt": "!boom"}}, 500),
        ("POST", "/v1/completions", {"json": {"prompt": "!dead"}}, 503),
        ("GET", "/nothing", {}, 404),
        ("DELETE", "/v1/models", {}, 405),
    ],
)
async def test_a_page_can_read_errors_too(method: str, route: str, fields: dict[str, Any], status: int) -> None:
    for options, readable in (({}, True), ({"allowed_origins": [PAGE]}, True), ({"allowed_origins": [OTHER]}, False)):
        async with client_of(**options) as client:
            headers = {"Origin": PAGE, **fields.get("headers", {})}
            answer = await client.request(method, route, **{**fields, "headers": headers})
            assert answer.status_code == status
            assert readable_by(answer, PAGE) is readable


async def test_a_preflight_needs_no_key_and_a_refusal_can_be_read() -> None:
    async with client_of(api_key=["key"], allowed_origins=[PAGE]) as client:
        assert lets(await preflight(client), "POST", "authorization", "content-type")
        refused = await client.get("/v1/models", headers={"Origin": PAGE})
        assert refused.status_code == 401
        assert readable_by(refused, PAGE)
        # OPTIONS alone is no preflight.
        assert (await client.options("/v1/models")).status_code == 401
        assert (await client.options("/v1/models", headers={"Origin": PAGE})).status_code == 401


async def test_without_an_origin_nothing_is_allowed_to_anyone() -> None:
    async with client_of() as client:
        answer = await client.get("/v1/models")
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"allow_credentials": True}, "allow_credentials"),
        ({"allow_credentials": True, "allowed_origins": [PAGE, "*"]}, "allow_credentials"),
        ({"allowed_origins": [f"{PAGE}/"]}, "allowed_origins"),
        ({"allowed_origins": ["page.example"]}, "allowed_origins"),
        ({"allowed_origins": [""]}, "allowed_origins"),
        ({"allowed_origins": ["https://Page.example"]}, "allowed_origins"),
        ({"allowed_origins": ["https://*.example"]}, "allowed_origins"),
        ({"allowed_origins": ["https://a\r\nX: y"]}, "allowed_origins"),
        ({"allowed_methods": ["PO ST"]}, "allowed_methods"),
        ({"allowed_headers": ["x\r\ny: z"]}, "allowed_headers"),
        ({"allowed_headers": ["é"]}, "allowed_headers"),
    ],
)
def test_what_no_browser_could_use_or_nobody_should_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        create_server_config(options)
    assert error.value.field == field


def test_what_browsers_send_as_origin_can_be_allowed() -> None:
    origins = [
        "null",
        "*",
        "http://[::1]:3000",
        "chrome-extension://abcdefgh",
        "http://127.0.0.1",
        "https://xn--e.example",
    ]
    assert create_server_config({"allowed_origins": origins}).allowed_origins == origins
