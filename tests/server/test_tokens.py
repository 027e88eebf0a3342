"""The tokenizer over HTTP, and the small routes: what a prompt is to the engine, it is to ``/tokenize``."""

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import BOS, MAX_MODEL_LEN, FakeLLM
from vllm_engine.config import EngineArgs
from vllm_server.app import build_app

TALK = [{"role": "user", "content": "hi"}]


async def test_a_text_has_the_tokens_of_a_prompt(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    for text in ("hi", "", "é\n", "x" * 9000):
        answer = (await client.post("/tokenize", json={"model": "fake", "prompt": text})).json()
        ids = [BOS, *map(ord, text)]
        assert answer == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert llm.rendered == 1  # the long one left the event loop
    plain = await client.post("/tokenize", json={"prompt": "hi", "add_special_tokens": False})
    assert plain.json()["tokens"] == [104, 105]
    spelled = await client.post("/tokenize", json={"prompt": "hi", "return_token_strs": True})
    assert spelled.json()["token_strs"] == ["<s>", "h", "i"]
    assert llm.calls == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"add_special_tokens": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"chat_template_kwargs": {"mood": "good"}},
        {"messages": [*TALK, {"role": "assistant", "content": "We"}], "continue_final_message": True},
    ],
)
async def test_a_conversation_has_the_tokens_that_an_answer_counts(
    client: httpx.AsyncClient, options: dict[str, Any]
) -> None:
    body = {"messages": TALK, **options}
    counted = (await client.post("/tokenize", json=body)).json()
    answered = await client.post("/v1/chat/completions", json={**body, "max_tokens": 1, "return_token_ids": True})
    assert counted["tokens"] == answered.json()["prompt_token_ids"]
    assert counted["count"] == answered.json()["usage"]["prompt_tokens"]


async def test_tokens_become_their_text_again(client: httpx.AsyncClient) -> None:
    text = "Well, é!"
    ids = (await client.post("/tokenize", json={"prompt": text})).json()["tokens"]
    assert (await client.post("/detokenize", json={"tokens": ids})).json() == {"prompt": "<s>" + text}
    assert (await client.post("/detokenize", json={"tokens": ids[1:], "model": "fake"})).json() == {"prompt": text}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 3}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, 400, "return_token_strs"),
        ("/tokenize", {"prompt": "a", "max_tokens": 1}, 400, "max_tokens"),
        ("/tokenize", {"prompt": "a" * (1 << 22) + "a"}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": TALK, "prompt": "a"}, 400, "prompt"),
        ("/tokenize", {"messages": TALK, "chat_template": "x"}, 400, "chat_template"),
        ("/tokenize", {"messages": TALK, "media_io_kwargs": {"a": 1}}, 400, "media_io_kwargs"),
        ("/tokenize", {"messages": TALK, "continue_final_message": True}, 400, "continue_final_message"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1] * ((1 << 20) + 1)}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
        ("/invocations", {}, 400, "prompt"),
        ("/invocations", {"messages": TALK, "best": 1}, 400, "best"),
        ("/invocations", {"prompt": 1}, 400, "prompt"),
    ],
)
async def test_what_is_wrong_is_told_by_field(
    client: httpx.AsyncClient, route: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = await client.post(route, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_without_a_tokenizer_there_are_no_tokens_to_tell(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    llm.tokenizer = None
    for route, body in (
        ("/tokenize", {"prompt": "a"}),
        ("/tokenize", {"messages": TALK}),
        ("/detokenize", {"tokens": [1]}),
    ):
        assert (await client.post(route, json=body)).status_code == 400


async def test_the_tokenizer_is_described_where_that_is_enabled(llm: FakeLLM) -> None:
    async with make_client(build_app(make_context(llm))) as client:
        assert (await client.get("/tokenizer_info")).status_code == 404
    async with make_client(build_app(make_context(llm, enable_tokenizer_info_endpoint=True))) as client:
        info = (await client.get("/tokenizer_info")).json()
    assert info["tokenizer_class"] == "FakeTokenizer"
    assert (info["bos_token"], info["eos_token"]) == ("<s>", None)
    assert info["chat_template"].startswith("{% if tools %}")


async def test_an_invocation_goes_where_its_body_belongs(client: httpx.AsyncClient) -> None:
    chat = await client.post("/invocations", json={"messages": TALK, "max_tokens": 2})
    assert (chat.json()["object"], chat.json()["choices"][0]["message"]["content"]) == ("chat.completion", "ab")
    text = await client.post("/invocations", json={"prompt": ["a", "b"], "max_tokens": 1})
    assert (text.json()["object"], len(text.json()["choices"])) == ("text_completion", 2)
    stream = await client.post("/invocations", json={"prompt": "a", "max_tokens": 1, "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")


async def test_a_ping_is_a_question_for_health(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    for method in ("GET", "POST"):
        assert (await client.request(method, "/ping")).status_code == 200
    llm.dead = True
    for method in ("GET", "POST"):
        assert (await client.request(method, "/ping")).status_code == 503


async def test_all_routes_are_guarded() -> None:
    guarded = make_context(FakeLLM(), api_key=["key"], enable_tokenizer_info_endpoint=True)
    async with make_client(build_app(guarded)) as client:
        for route in ("/tokenize", "/detokenize", "/invocations", "/ping"):
            assert (await client.post(route, json={"prompt": "a", "tokens": [1]})).status_code == 401
        assert (await client.get("/tokenizer_info")).status_code == 401


async def test_the_settings_are_told_in_development_only_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "geheim-1")
    llm = FakeLLM()
    llm.config = EngineArgs(
        "fake/model",
        hf_token="geheim-3",
        additional_config={"my_password": "geheim-4", "url": "http://u:geheim-5@host/"},
    ).create_config()
    context = make_context(llm, api_key=["geheim-2"])
    headers = {"x-api-key": "geheim-2"}
    async with make_client(build_app(context)) as client:
        assert (await client.get("/server_info", headers=headers)).status_code == 404
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    async with make_client(build_app(context)) as client:
        assert (await client.get("/server_info")).status_code == 401
        response = await client.get("/server_info", headers=headers)
        assert (await client.get("/server_info?config_format=json", headers=headers)).json() == response.json()
        text = await client.get("/server_info?config_format=text", headers=headers)
        assert (text.status_code, text.json()["error"]["param"]) == (400, "config_format")
    assert response.status_code == 200
    assert "geheim" not in response.text
    facts = json.loads(response.text)
    assert facts["vllm_config"]["model"]["model"] == "fake/model"
    assert facts["server_config"]["port"] == 8000
    assert facts["vllm_env"]["VLLM_SERVER_DEV_MODE"] == "1"
