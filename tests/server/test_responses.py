"""What ``/v1/responses`` keeps and for whom; answers in the background; what ends them."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.batch_folder import Folder, line, start
from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM, letters
from tests.server.process import Process
from tests.server.test_disconnect import ABORTED_WITHIN, send, until
from vllm_engine.errors import EngineDead, Overloaded
from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.errors import http_status
from vllm_server.protocol.responses import ResponsesRequest
from vllm_server.response_store import KeptResponse, ResponseStore

ROUTE = "/v1/responses"
SLOW = {"input": "hi", "max_output_tokens": 400}


def kept(name: str, *, ended: bool = True, size: int = 10, tenant: str = "") -> KeptResponse:
    return KeptResponse(id=name, tenant=tenant, items=b"x" * size, ended=ended)


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@pytest.fixture
def slow() -> FakeLLM:
    return FakeLLM(delay=0.02)


@pytest.fixture
def context(slow: FakeLLM) -> ServerContext:
    return make_context(slow)


@pytest.fixture
async def slow_client(context: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(build_app(context)) as client:
        yield client


# ---- the store ----


@pytest.mark.parametrize("bounds", [{"most": 3}, {"most_bytes": 39}])
def test_the_oldest_that_have_ended_make_room(bounds: dict[str, int]) -> None:
    store = ResponseStore(**bounds)
    runs = kept("running", ended=False)
    for item in (kept("a"), runs, kept("b"), kept("c")):
        store.add(item)
    assert [name for name in ("running", "a", "b", "c") if name in store._kept] == ["running", "b", "c"]
    assert (len(store), store.num_bytes) == (3, 30)
    runs.ended = True
    store.update(runs)  # it ended last
    store.add(kept("d"))
    assert set(store._kept) == {"running", "c", "d"}
    for item in list(store._kept.values()):
        store.drop(item)
        store.drop(item)
    assert (len(store), store.num_bytes, store._ended) == (0, 0, {})


def test_what_runs_is_never_forgotten_so_there_may_be_no_room() -> None:
    store = ResponseStore(most_bytes=100)
    runs = kept("running", ended=False, size=50)
    runs.events = []
    store.add(runs)
    with pytest.raises(Overloaded):
        store.add(kept("more", ended=False, size=60))
    assert (len(store), store.num_bytes) == (1, 50)
    assert store.update(runs, [b"e" * 50])
    assert not store.update(runs, [b"e"])
    runs.ended = True
    assert store.update(runs)  # it makes room of itself
    assert (len(store), store.num_bytes) == (0, 0)


async def test_whoever_follows_gets_all_events_and_the_end() -> None:
    store = ResponseStore()
    item = kept("a", ended=False)
    item.events = [b"0", b"1"]
    store.add(item)

    async def read(start: int) -> bytes:
        return b"".join([block async for block in item.follow(start)])

    readers = [asyncio.create_task(read(start)) for start in (0, 1, 3, 9)]
    for number in range(2, 6):
        await asyncio.sleep(0)
        store.update(item, [b"%d" % number])
    store.drop(item)
    item.ended = True
    store.update(item, [b"6"])
    assert [await reader for reader in readers] == [b"0123456", b"123456", b"3456", b""]


async def test_a_response_belongs_to_the_key_that_made_it() -> None:
    llm = FakeLLM()
    async with make_client(build_app(make_context(llm, api_key=["one", "two"]))) as client:
        made = (await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 1}, headers=of("one"))).json()["id"]
        path = f"{ROUTE}/{made}"
        for method, url in (
            ("GET", path),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ):
            refused = await client.request(method, url, headers=of("two"))
            unknown = await client.request(method, url.replace(made, "resp_x"), headers=of("two"))
            assert refused.status_code == unknown.status_code == 404
            # Nothing tells the one from the other.
            assert refused.text.replace(made, "") == unknown.text.replace("resp_x", "")
            assert (await client.request(method, url)).status_code == 401
        body = {"input": "more", "previous_response_id": made, "max_output_tokens": 1}
        for url in (ROUTE, f"{ROUTE}/input_tokens"):
            other = {**body} if url == ROUTE else {"input": "more", "previous_response_id": made}
            assert (await client.post(url, json=other, headers=of("two"))).status_code == 404
            assert (await client.post(url, json=other, headers=of("one"))).status_code == 200
        assert len(llm.calls) == 2


async def test_without_a_store_nothing_is_kept_and_what_needs_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, llm: FakeLLM
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "0")
    context = make_context(llm)
    async with make_client(build_app(context)) as client:
        made = (await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 1})).json()
        assert made["store"] is False
        assert (await client.get(f"{ROUTE}/{made['id']}")).status_code == 404
        for name, value in (("store", True), ("background", True), ("previous_response_id", made["id"])):
            response = await client.post(ROUTE, json={"input": "hi", name: value})
            assert (response.status_code, response.json()["error"]["param"]) == (400, name)
            assert "VLLM_ENABLE_RESPONSES_API_STORE" in response.json()["error"]["message"]
    assert len(context.responses) == 0


def test_a_batch_keeps_nothing_and_answers_all_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    body = {"input": "hi", "max_output_tokens": 2}
    folder.write(line("a", url=ROUTE, **body), line("b", url=ROUTE, **body, background=True))
    done = start(*folder.flags)
    assert "2 requests, 1 failed" in done.communicate(timeout=30)[0]
    good, bad = (result["response"] for result in folder.results())
    assert (good["body"]["output"][0]["content"][0]["text"], good["body"]["store"]) == ("ab", False)
    assert (bad["status_code"], bad["body"]["error"]["param"]) == (400, "background")


async def test_a_hostile_id_is_just_unknown(client: httpx.AsyncClient) -> None:
    for name in ("x" * 5000, "%00", "%F0%9F%92%A3", "resp_1;x", "..", "%2e%2e%2fmodels", "{{7*7}}", "'\"<script>"):
        for method, path in (
            ("GET", name),
            ("DELETE", name),
            ("GET", f"{name}/input_items"),
            ("POST", f"{name}/cancel"),
        ):
            response = await client.request(method, f"{ROUTE}/{path}")
            assert response.status_code in (404, 405)
            assert len(response.text) < 400
            assert response.text.isascii()


# ---- in the background ----


async def test_it_runs_on_without_its_client_and_is_cancelled_on_demand(
    slow_client: httpx.AsyncClient, slow: FakeLLM, context: ServerContext
) -> None:
    made = (await slow_client.post(ROUTE, json={**SLOW, "background": True})).json()
    assert made["status"] in ("queued", "in_progress")
    path = f"{ROUTE}/{made['id']}"
    assert len(context.in_flight) == len(slow.running) == 1
    await asyncio.sleep(0.1)
    assert (await slow_client.get(path)).json()["status"] == "in_progress"
    early = await slow_client.post(ROUTE, json={"input": "more", "previous_response_id": made["id"]})
    assert (early.status_code, early.json()["error"]["param"]) == (400, "previous_response_id")
    cancelled = (await slow_client.post(f"{path}/cancel")).json()
    # The engine is rid of it by the time of the answer.
    assert slow.running == set()
    assert list(slow.aborted) == [made["id"]]
    assert len(context.in_flight) == 0
    assert cancelled["status"] == "cancelled"
    text = cancelled["output"][0]["content"][0]["text"]
    assert text == letters(len(text)) != ""
    assert cancelled["usage"]["output_tokens"] == len(text)
    for again in (await slow_client.post(f"{path}/cancel"), await slow_client.get(path)):
        assert again.json() == cancelled


async def test_only_what_runs_in_the_background_can_be_cancelled(client: httpx.AsyncClient) -> None:
    made = (await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 1})).json()["id"]
    response = await client.post(f"{ROUTE}/{made}/cancel")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_id")


async def test_deleting_it_ends_it(slow_client: httpx.AsyncClient, slow: FakeLLM, context: ServerContext) -> None:
    made = (await slow_client.post(ROUTE, json={**SLOW, "background": True})).json()["id"]
    gone = await slow_client.delete(f"{ROUTE}/{made}")
    assert gone.json() == {"id": made, "object": "response", "deleted": True}
    assert (slow.running, len(context.in_flight), len(context.responses)) == (set(), 0, 0)
    assert (await slow_client.get(f"{ROUTE}/{made}")).status_code == 404


async def test_readers_of_a_stream_come_and_go(context: ServerContext, slow: FakeLLM) -> None:
    with running(context) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            async with client.stream("POST", ROUTE, json={**SLOW, "background": True, "stream": True}) as stream:
                lines = stream.aiter_lines()
                while not (line := await anext(lines)).startswith("data: "):
                    pass
            made = json.loads(line.removeprefix("data: "))["response"]["id"]
            await asyncio.sleep(0.1)
            assert len(slow.running) == 1
            path = f"{ROUTE}/{made}"
            reader = asyncio.create_task(client.get(path, params={"stream": True, "starting_after": 3}))
            await asyncio.sleep(0.1)
            cancelled = (await client.post(f"{path}/cancel")).json()
            events = events_of((await reader).text)
            assert [event["sequence_number"] for event in events] == list(range(4, 4 + len(events)))
            assert (events[-1]["type"], events[-1]["response"]) == ("response.cancelled", cancelled)
            for query in ({"starting_after": "-1"}, {"starting_after": "x"}, {"starting_after": "9" * 30}, {}):
                for stream_asked in (True, False):
                    if query or not stream_asked:
                        response = await client.get(path, params={**query, "stream": stream_asked})
                        assert response.status_code == (400 if query else 200)


async def test_it_is_refused_before_it_is_kept(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    for text, status in (("!invalid", 400), ("!overloaded", 429), ("!dead", 503), ("!boom", 500), ("x" * 600, 400)):
        response = await client.post(ROUTE, json={"input": text, "background": True})
        assert response.status_code == status, response.text
    assert llm.running == set()


async def test_a_key_has_so_many_in_the_background_too(slow: FakeLLM) -> None:
    context = make_context(slow, api_key=["one"], max_concurrency_per_key=1)
    async with make_client(build_app(context)) as client:
        body = {**SLOW, "background": True}
        made = (await client.post(ROUTE, json=body, headers=of("one"))).json()["id"]
        assert (await client.post(ROUTE, json=body, headers=of("one"))).status_code == 429
        await client.post(f"{ROUTE}/{made}/cancel", headers=of("one"))
        again = await client.post(ROUTE, json=body, headers=of("one"))
        assert again.status_code == 200
        await client.delete(f"{ROUTE}/{again.json()['id']}", headers=of("one"))
    assert {call.tenant for call in slow.calls} != {""}


async def test_one_that_outgrows_the_store_fails(llm: FakeLLM) -> None:
    context = make_context(llm)
    object.__setattr__(context, "responses", ResponseStore(most_bytes=4000))
    async with make_client(build_app(context)) as client:
        big = await client.post(ROUTE, json={"input": "x" * 5000, "background": True})
        assert big.status_code in (400, 429)
        stream = await client.post(ROUTE, json={**SLOW, "background": True, "stream": True})
        last = events_of(stream.text)[-1]
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "rate_limit_exceeded")
        assert llm.running == set()
        whole = await client.post(ROUTE, json={"input": "hi", "max_output_tokens": 1})
        assert (await client.get(f"{ROUTE}/{whole.json()['id']}")).status_code == 200
        assert context.responses.num_bytes <= 4000


# ---- the end of clients and of the server ----


async def test_a_client_that_leaves_a_stream_frees_the_engine(slow: FakeLLM) -> None:
    context = make_context(slow)
    with running(context) as url:
        for stream in (True, False):
            slow.aborted.clear()
            reader, writer = await send(url, ROUTE, {**SLOW, "stream": stream})
            if stream:
                await reader.readuntil(b"data: ")
                response = json.loads(await reader.readuntil(b"\n"))["response"]
            await until(lambda: len(slow.running) == 1)
            closed = asyncio.get_running_loop().time()
            writer.transport.abort()
            await until(lambda: len(slow.aborted) == 1)
            assert next(iter(slow.aborted.values())) - closed < ABORTED_WITHIN
            if stream:
                left = httpx.get(f"{url}{ROUTE}/{response['id']}").json()
                assert (left["status"], left["error"]) == ("cancelled", None)


async def test_a_server_that_drains_takes_no_more_and_finishes_what_runs(
    slow_client: httpx.AsyncClient, slow: FakeLLM, context: ServerContext
) -> None:
    made = (await slow_client.post(ROUTE, json={"input": "hi", "max_output_tokens": 10, "background": True})).json()
    context.in_flight.drain()
    for url in (ROUTE, f"{ROUTE}/input_tokens"):
        assert (await slow_client.post(url, json={"input": "hi"})).status_code == 503
    assert len(context.in_flight) == 1
    await until(lambda: not len(context.in_flight))
    done = (await slow_client.get(f"{ROUTE}/{made['id']}")).json()
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("incomplete", letters(10))


async def test_a_server_that_stops_at_once_ends_all_with_an_event(slow: FakeLLM) -> None:
    context = make_context(slow)
    texts: dict[str, str] = {}
    begun = threading.Barrier(4)

    def read(name: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", f"{url}{ROUTE}", json={**SLOW, **body}, timeout=20) as response:
            lines = response.iter_lines()
            texts[name] = next(lines) + "\n"
            begun.wait(timeout=10)
            texts[name] += "\n".join(lines)

    with running(context) as url:
        quiet = httpx.post(f"{url}{ROUTE}", json={**SLOW, "background": True}).json()["id"]
        bodies = {"plain": {"stream": True}, "background": {"stream": True, "background": True}}
        readers = [threading.Thread(target=read, args=item) for item in bodies.items()]
        readers.append(threading.Thread(target=read, args=("other", {"stream": True, "store": False})))
        for reader in readers:
            reader.start()
        await asyncio.to_thread(begun.wait, 10)
        tasks = list(context.in_flight._tasks)
        tasks[0].get_loop().call_soon_threadsafe(context.in_flight.abort_all)
        for reader in readers:
            await asyncio.to_thread(reader.join, 10)
        left = httpx.get(f"{url}{ROUTE}/{quiet}").json()
        assert httpx.post(f"{url}{ROUTE}", json={**SLOW, "background": True}).status_code == 503
    assert (left["status"], left["error"]["message"]) == ("failed", "The server has shut down.")
    for name in ("plain", "other"):
        last = events_of(texts[name])[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert events_of(texts["background"])[-1]["type"] in ("response.failed", "error")
    assert "[DONE]" not in "".join(texts.values())
    assert slow.running == set()


async def test_a_dead_engine_fails_what_runs(client: httpx.AsyncClient) -> None:
    made = await client.post(ROUTE, json={"input": "!dead-after-2", "background": True, "max_output_tokens": 5})
    path = f"{ROUTE}/{made.json()['id']}"
    while (now := (await client.get(path)).json())["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
    assert (now["status"], now["error"]["code"]) == ("failed", "server_error")
    assert "0x" not in now["error"]["message"]
    assert now["output"][0]["content"][0]["text"] == "ab"
    assert http_status(EngineDead("x")) == 503


# ---- truncation ----


async def test_the_oldest_turns_go_where_that_is_asked_for(client: httpx.AsyncClient, llm: FakeLLM) -> None:
    turns = [
        [{"role": "user", "content": str(number) * 90}, {"role": "assistant", "content": "ok"}] for number in range(8)
    ]
    items = [{"role": "system", "content": "rules"}, *[item for turn in turns for item in turn]]
    body = {"input": [*items, {"role": "user", "content": "last"}], "max_output_tokens": 20}
    assert (await client.post(ROUTE, json=body)).status_code == 400
    llm.calls.clear()
    made = (await client.post(ROUTE, json={**body, "truncation": "auto", "enable_response_messages": True})).json()
    text = made["input_messages"][0]["message"]
    turn = len("<user></><assistant>ok</>") + 90
    rest = len("<system>rules</>") + len("<user>last</><assistant>")
    fit = (512 - 512 // 8 - rest) // turn  # an eighth stays free
    assert text.startswith(f"<system>rules</><user>{8 - fit}{8 - fit}")
    assert text.endswith("<user>last</><assistant>")
    assert len(text) == rest + fit * turn
    details = made["usage"]["input_tokens_details"]
    assert details["dropped_messages"] == 2 * (8 - fit)
    assert made["usage"]["input_tokens"] == len(text)
    # All that was sent is there for the next turn.
    listed = (await client.get(f"{ROUTE}/{made['id']}/input_items", params={"limit": 100})).json()["data"]
    assert len(listed) == 18
    # What fits is left alone, and the last turn stays.
    short = {"input": "x" * 480, "truncation": "auto", "max_output_tokens": 5}
    assert "dropped_messages" not in (await client.post(ROUTE, json=short)).json()["usage"]["input_tokens_details"]
    long = await client.post(ROUTE, json={**short, "input": "x" * 600})
    assert (long.status_code, long.json()["error"]["param"]) == (400, "input")
    huge = [{"role": "user", "content": "x" * 1_000_000}, {"role": "user", "content": "last"}]
    for sent, dropped in ((huge, 1), ([*huge, *items], 12), (items[1:3], None)):
        made = (await client.post(ROUTE, json={**short, "input": sent})).json()["usage"]["input_tokens_details"]
        assert made.get("dropped_messages") == dropped


async def test_too_long_an_input_is_not_counted(client: httpx.AsyncClient) -> None:
    response = await client.post(f"{ROUTE}/input_tokens", json={"input": "x" * 5_000_000})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


# ---- the page ----


async def test_the_page_describes_it(client: httpx.AsyncClient) -> None:
    page = (await client.get("/openapi.json")).json()
    schemas = page["components"]["schemas"]
    routes = {(path, method): item for path, methods in page["paths"].items() for method, item in methods.items()}
    mine = {key: item for key, item in routes.items() if key[0].startswith(ROUTE)}
    assert len(mine) == 6
    for (path, method), item in mine.items():
        answer = item["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert "properties" in schemas[answer]
        assert ("requestBody" in item) == (method == "post" and not path.endswith("cancel"))
    assert set(schemas["ResponsesRequest"]["properties"]) == set(ResponsesRequest.__struct_fields__)


# ---- the process ----


@pytest.mark.parametrize(("seconds", "aborted"), [("5", 0), ("0", 1)])
def test_a_signal_lets_the_background_finish_in_its_time(processes: list[Process], seconds: str, aborted: int) -> None:
    process = Process("--shutdown-timeout", seconds, delay=0.03)
    processes.append(process)
    made = httpx.post(f"{process.url}{ROUTE}", json={"input": "hi", "max_output_tokens": 20, "background": True})
    assert made.json()["status"] in ("queued", "in_progress")
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert f"engine closed, running=0, aborted={aborted}" in process.lines
