"""Chat templates: the server's own, however slow, and those that come with requests."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend import template_engine
from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.templates.process import TemplateProcess
from vllm_server.templates.worker import RenderCall

CHAT = "/v1/chat/completions"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BRANCHING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
SHARED = (
    "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x | tojson | length }}"
)
LARGE = (
    "{% set ns = namespace(x='ab' * 500000) %}"
    "{% set all %}{% for i in range(99999) %}{{ ns.x }}{% endfor %}{% endset %}{{ all | length }}"
)


def body(template: str | None = None, **fields: Any) -> dict[str, Any]:
    own = {} if template is None else {"chat_template": template}
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **own, **fields}


@pytest.fixture
def trusting(llm: FakeLLM) -> ServerContext:
    return make_context(llm, trust_request_chat_template=True)


@pytest.fixture
async def trusting_client(trusting: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(build_app(trusting)) as client:
        yield client
    trusting.templates.close()


async def longest_pause(until: "asyncio.Task[Any]") -> float:
    """Longest time in seconds that the event loop had for nobody else until a task was done."""
    longest = 0.0
    while not until.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - before)
    return longest


async def test_a_request_brings_no_template_unless_that_is_allowed(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    for fields in ({"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}):
        response = await client.post(CHAT, json=body(**fields))
        assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(fields)))
    assert llm.calls == []


async def test_where_it_is_allowed_it_is_used(llm: FakeLLM) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}{{ mood }}]{% endfor %}"
    context = make_context(llm, trust_request_chat_template=True)
    async with make_client(build_app(context)) as client:
        response = await client.post(CHAT, json=body(template, chat_template_kwargs={"mood": "!"}))
        assert response.status_code == 200
        assert (await client.post(CHAT, json=body())).status_code == 200
    context.templates.close()
    assert [call.prompt["prompt"] for call in llm.calls] == ["<s>[hi!]", "<user>hi</><assistant>"]


async def test_hostile_templates_cost_their_sender_a_400_and_others_nothing(
    trusting_client: httpx.AsyncClient, trusting: ServerContext, llm: FakeLLM
) -> None:
    broken = "{% for %}"
    hostile = [NESTED, "{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}", broken, "{{ 'x' * 10**9 }}"]
    for template in hostile:
        sent = asyncio.create_task(trusting_client.post(CHAT, json=body(template)))
        assert await longest_pause(sent) < 0.5
        assert (await sent).status_code == 400
        assert "Traceback" not in (await sent).text
    assert llm.calls == []
    assert (await trusting_client.post(CHAT, json=body("fine"))).status_code == 200


@pytest.mark.parametrize("template", [SHARED, LARGE], ids=["shared", "large"])
async def test_what_slips_through_ends_a_process_that_serves_templates_only(template: str) -> None:
    process = TemplateProcess()
    call = RenderCall({}, {}, [{"role": "user", "content": "hi"}], {"chat_template": template})
    started = time.monotonic()
    with pytest.raises(InvalidRequest) as error:
        await process.render(call)
    assert error.value.field == "chat_template"
    assert time.monotonic() - started < 20  # for ever, if nobody stopped it
    call.options = {"chat_template": "fine"}
    assert await process.render(call) == "fine"
    children = {child.pid for child in psutil.Process().children()}
    process.close()
    assert len(children - {child.pid for child in psutil.Process().children()}) == 1


@pytest.mark.parametrize("template", [NESTED, BRANCHING], ids=["nested", "branching"])
async def test_a_slow_template_of_the_server_itself_is_stopped_and_holds_up_nobody(
    client: httpx.AsyncClient, llm: FakeLLM, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_engine, "RENDER_SECONDS", 0.5)
    assert llm.tokenizer is not None
    llm.tokenizer.chat_templates = {"default": template}
    started = time.monotonic()
    sent = asyncio.create_task(client.post(CHAT, json=body()))
    assert await longest_pause(sent) < 0.5
    assert (await sent).status_code == 400
    assert (await sent).json()["error"]["param"] == "messages"
    assert time.monotonic() - started < 10  # for ever, if nobody stopped it
    assert llm.rendered == 1


@pytest.mark.parametrize("field", ["documents", "reasoning_effort"])
async def test_what_a_template_reads_reaches_it_and_is_refused_otherwise(
    client: httpx.AsyncClient, llm: FakeLLM, field: str
) -> None:
    assert llm.tokenizer is not None
    value = {"documents": [{"title": "t", "text": "x"}], "reasoning_effort": "low"}[field]
    response = await client.post(CHAT, json=body(**{field: value}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    llm.tokenizer.chat_templates = {"default": "{{ " + field + " | tojson }}{{ messages[0].content }}"}
    assert (await client.post(CHAT, json=body(**{field: value}))).status_code == 200
    assert llm.calls[-1].prompt["prompt"] in ('[{"title": "t", "text": "x"}]hi', '"low"hi')


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_begins_the_answer_with_the_words_it_goes_on_from(
    client: httpx.AsyncClient, stream: bool
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    fields = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 2, "stream": stream}
    text = (await client.post(CHAT, json=fields)).text
    if stream:
        assert '"content":"Well, "' in text
    else:
        assert '"content":"Well, ab"' in text
    assert "Well" not in (await client.post(CHAT, json={**fields, "echo": False})).text
    assert '"hi' not in (await client.post(CHAT, json=body(echo=True))).text
