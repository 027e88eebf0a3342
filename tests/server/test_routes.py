"""Models, health, version, metrics, documentation, and the label of a request."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_server import __version__
from vllm_server.app import build_app
from vllm_server.config import create_server_config
from vllm_server.routes import health
from vllm_server.routes.docs import docs_page


async def test_each_served_name_is_a_model(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["fake", "alias"]
    assert body["data"][0] == (await client.get("/v1/models/fake")).json()
    assert body["data"][0]["max_model_len"] == 512
    assert body["data"][0]["root"] == "fake/model"


async def test_health_follows_the_engine(
    client: httpx.AsyncClient, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def codes() -> list[str | None]:
        answers = [await client.get(route) for route in ("/health", "/readyz", "/livez")]
        for ping in (await client.get("/ping"), await client.post("/ping")):
            assert (ping.status_code, ping.text) == (answers[0].status_code, answers[0].text)
        assert [answer.status_code for answer in answers] == [503 if answer.text else 200 for answer in answers]
        assert not any("0x" in answer.text for answer in answers)
        return [answer.json()["error"]["code"] if answer.text else None for answer in answers]

    assert await codes() == [None, None, None]
    await llm.sleep()  # it is well, and is to be sent no requests
    assert await codes() == [None, "engine_asleep", None]
    await llm.wake_up()
    assert await codes() == [None, None, None]
    llm.stalled = True
    assert await codes() == ["engine_stalled", "engine_stalled", None]
    llm.dead = True
    assert await codes() == ["engine_dead", "engine_dead", "engine_dead"]
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")
    assert await codes() == ["engine_dead", "engine_dead", None]


@pytest.mark.parametrize("sleeps", [True, False])
async def test_of_several_processes_each_asks_the_engine_whether_it_sleeps(
    sleeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLLM()
    llm.config = EngineArgs("fake/model", enable_sleep_mode=True).create_config()
    llm.asleep = not sleeps  # what this process was told, and another one has changed since

    async def is_sleeping() -> bool:
        return sleeps

    async def in_a_long_step() -> bool:
        await asyncio.sleep(60)
        return True

    async with make_client(build_app(make_context(llm, api_server_count=2))) as client:
        monkeypatch.setattr(llm, "is_sleeping", is_sleeping)
        assert (await client.get("/readyz")).status_code == (503 if sleeps else 200)
        assert (await client.get("/health")).status_code == 200
        monkeypatch.setattr(llm, "is_sleeping", in_a_long_step)
        monkeypatch.setattr(health, "ANSWER_SECONDS", 0.01)
        assert (await client.get("/readyz")).status_code == 200


async def test_the_version_is_that_of_the_wheel(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_the_documentation_can_be_switched_off() -> None:
    async with make_client(build_app(make_context(FakeLLM()))) as client:
        description = (await client.get("/openapi.json")).json()
        paths = description["paths"]
        assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"} <= set(paths)
        assert (await client.get("/docs")).status_code == 200
        known = description["components"]["schemas"]
        assert {"prompt", "min_p"} <= set(known["CompletionRequest"]["properties"])
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)):
            assert name in known
    async with make_client(build_app(make_context(FakeLLM(), disable_fastapi_docs=True))) as client:
        for route in ("/openapi.json", "/docs", "/redoc"):
            assert (await client.get(route)).status_code == 404


async def test_offline_documentation_needs_nothing_from_elsewhere() -> None:
    async with make_client(build_app(make_context(FakeLLM(), enable_offline_docs=True))) as client:
        answer = await client.get("/docs")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert (await client.get("/redoc")).status_code == 404
        description = (await client.get("/openapi.json")).json()
        answers = [(await client.get(path)).json() for path in ("/v1/models", "/v1/models/fake")]
    for answered, kind in zip(answers, ("ModelList", "ModelCard"), strict=True):
        assert answered.keys() == description["components"]["schemas"][kind]["properties"].keys()
    page = answer.text
    assert "<code>starting_after</code> (integer)" in page and "<code>order</code> (&#x27;asc&#x27;" in page
    assert "http" not in page and not re.search(r"<(script|link|img|iframe)|src=|url\(|@import", page)
    for path, methods in description["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    anchors, links = re.findall(r' id="(\w+)"', page), re.findall(r'href="#(\w+)"', page)
    assert sorted(description["components"]["schemas"]) == sorted(anchors)
    assert links and set(links) <= set(anchors)
    assert "<td><code>min_p</code></td>" in page
    assert docs_page({"info": {"title": "<b>", "version": "&"}, "paths": {}}).count("&lt;b&gt; &amp;") == 2
    with pytest.raises(ConfigError):
        create_server_config({"enable_offline_docs": True, "disable_fastapi_docs": True})


@pytest.mark.parametrize("route", ["/health", "/nothing", "/v1/models"])
async def test_a_label_comes_back_on_every_response(client: httpx.AsyncClient, route: str) -> None:
    response = await client.get(route, headers={"X-Request-Id": "my-label:1"})
    assert response.headers["x-request-id"] == "my-label:1"


@pytest.mark.parametrize("prompt", ["hi", "!boom", "!invalid"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_label_is_never_the_internal_id(
    client: httpx.AsyncClient, llm: FakeLLM, prompt: str, stream: bool
) -> None:
    body = {"prompt": prompt, "max_tokens": 1, "stream": stream, "request_id": "of-body"}
    response = await client.post("/v1/completions", json=body, headers={"X-Request-Id": "of-header"})
    assert response.headers["x-request-id"] == "of-header"
    response = await client.post("/v1/completions", json=body)
    assert response.headers["x-request-id"] == "of-body"
    ids = [call.request_id or "" for call in llm.calls]
    assert len(set(ids)) == 2
    assert not any("of-" in item for item in ids)


@pytest.mark.parametrize("label", ["", "x" * 129, "a b", "a\tb", "é"])
async def test_an_odd_label_is_replaced(client: httpx.AsyncClient, label: str) -> None:
    response = await client.get("/health", headers={b"x-request-id": label.encode()})
    assert len(response.headers["x-request-id"]) == 32


async def test_a_root_path_is_taken_off() -> None:
    async with make_client(build_app(make_context(FakeLLM(), root_path="/llm"))) as client:
        assert (await client.get("/llm/v1/models")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_routes_for_development_are_there_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = FakeLLM()
    async with make_client(build_app(make_context(llm))) as client:
        assert (await client.post("/reset_prefix_cache")).status_code == 404
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with make_client(build_app(make_context(llm, api_key=["secret"]))) as client:
        assert (await client.post("/reset_prefix_cache")).status_code == 401
        assert llm.control_calls == []
        key = {"Authorization": "Bearer secret"}
        assert (await client.get("/reset_prefix_cache", headers=key)).status_code == 405
        assert (await client.post("/reset_prefix_cache", headers=key)).status_code == 200
        assert llm.control_calls == [("reset_prefix_cache",)]
        assert (await client.post("/reset_prefix_cache?reset_running_requests=true", headers=key)).status_code == 200
        assert llm.control_calls[1:] == [("reset_prefix_cache", True)]
        for query in ("reset_running_requests=2", "reset_external=true"):
            response = await client.post(f"/reset_prefix_cache?{query}", headers=key)
            assert (response.status_code, response.json()["error"]["param"]) == (400, query.split("=")[0])
        llm.dead = True
        assert (await client.post("/reset_prefix_cache", headers=key)).status_code == 503


async def test_sleep_and_wake_up_reach_the_engine_in_development_only(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = FakeLLM()
    async with make_client(build_app(make_context(llm))) as client:
        assert (await client.post("/sleep")).status_code == 404
        assert (await client.get("/is_sleeping")).status_code == 404
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with make_client(build_app(make_context(llm, api_key=["secret"]))) as client:
        assert (await client.post("/sleep")).status_code == 401
        client.headers["x-api-key"] = "secret"
        for query, param in (
            ("level=3", "level"),
            ("level=x", "level"),
            ("level=", "level"),
            ("mode=abort", "mode"),
        ):
            response = await client.post(f"/sleep?{query}")
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        for query in ("tags=all", "tags=", "tags=weights&tags=all"):
            response = await client.post(f"/wake_up?{query}")
            assert (response.status_code, response.json()["error"]["param"]) == (400, "tags")
        assert llm.control_calls == []
        for route in (
            "/sleep",
            "/sleep?level=0&mode=keep",
            "/sleep?level=2",
            "/release_kv_cache_memory",
            "/wake_up?tags=weights",
            "/wake_up?tags=kv_cache",
            "/wake_up?tags=kv_cache&tags=weights",
            "/wake_up",
        ):
            assert (await client.post(route)).status_code == 200
        assert llm.control_calls == [
            *(("sleep", 1), ("sleep", 0), ("sleep", 2), ("release_kv_cache_memory",)),
            *(("wake_up", "weights"), ("wake_up", "kv_cache"), ("wake_up", "kv_cache", "weights"), ("wake_up",)),
        ]
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        llm.dead = True
        assert (await client.get("/is_sleeping")).status_code == 503


async def test_workers_are_called_in_development_only(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = FakeLLM()
    async with make_client(build_app(make_context(llm))) as client:
        assert (await client.post("/collective_rpc", json={"method": "reload_weights"})).status_code == 404
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with make_client(build_app(make_context(llm))) as client:

        async def call(**body: Any) -> tuple[int, Any]:
            response = await client.post("/collective_rpc", json=body)
            return response.status_code, response.json()

        assert await call(method="reload_weights") == (200, {"results": [{"one": 1}, "YWI=", "(1+2j)", None]})
        assert (await call(method="resize", args=[3, "x"], kwargs={"by": 2}, timeout=9))[0] == 200
        assert llm.control_calls == [("reload_weights",), ("resize", 3, "x", ("by", 2))]
        status, body = await call(method="fail")
        assert (status, body["error"]["message"]) == (500, "fail failed: ArithmeticError: as asked")
        status, body = await call(method="take_long", timeout=0.01)
        assert (status, body["error"]["message"]) == (500, "take_long has not returned within 0.01 s")
        for body, param in (
            ({}, "method"),
            ({"method": 3}, "method"),
            ({"method": "x", "args": {}}, "args"),
            ({"method": "x", "kwargs": []}, "kwargs"),
            ({"method": "x", "timeout": 0}, "timeout"),
            ({"method": "x", "wait": 1}, "wait"),
        ):
            status, answer = await call(**body)
            assert (status, answer["error"]["param"]) == (400, param)
