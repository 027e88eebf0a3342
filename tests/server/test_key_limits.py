"""What one key may do: counts on a clock of the test, and the same over HTTP."""

import asyncio
import os
from collections.abc import Callable

import httpx
import pytest

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM
from vllm_engine.errors import ConfigError
from vllm_engine.frontend.tally import SharedTable
from vllm_server.access.key_limits import KeyLimits
from vllm_server.app import build_app
from vllm_server.config import create_server_config
from vllm_server.errors import RateLimited

BODY = {"prompt": "hi", "max_tokens": 7}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def client_of(llm: FakeLLM, **options: object) -> httpx.AsyncClient:
    return make_client(build_app(make_context(llm, api_key=["one", "two"], **options)))


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_has_so_many_requests_at_once() -> None:
    limits = KeyLimits(max_concurrency=2)
    limits.enter("a")
    limits.enter("a")
    with pytest.raises(RateLimited):
        limits.enter("a")
    limits.enter("b")
    limits.leave("a")
    limits.enter("a")
    for key in "aab":
        limits.leave(key)
    assert limits.num_known == 0


def test_a_bucket_is_overdrawn_by_what_runs_and_fills_evenly() -> None:
    clock = Clock()
    limits = KeyLimits(tokens_per_minute=600, clock=clock)
    limits.enter("a")
    limits.charge("a", 700)
    with pytest.raises(RateLimited) as refused:
        limits.enter("a")
    assert refused.value.retry_after == pytest.approx(11)  # 100 tokens flow in within 10 s
    limits.enter("b")
    clock.now += refused.value.retry_after
    limits.enter("a")
    for key in "aab":
        limits.leave(key)
    clock.now += 60
    limits.charge("b", 0)
    assert limits.num_known <= 2


def test_keys_that_are_idle_are_forgotten() -> None:
    clock = Clock()
    limits = KeyLimits(3, 60, clock=clock)
    for index in range(5000):
        limits.enter(f"k{index}")
        limits.charge(f"k{index}", 5)
        limits.leave(f"k{index}")
        clock.now += 1
        assert limits.num_known < 200
    assert limits.num_known > 0


async def test_requests_beyond_a_keys_concurrency_are_refused_and_those_of_others_are_not() -> None:
    llm = FakeLLM(delay=0.02)
    async with client_of(llm, max_concurrency_per_key=2) as client:
        bodies = [{**BODY, "stream": stream} for stream in (True, False)]
        running = [
            asyncio.ensure_future(client.post("/v1/completions", json=body, headers=of("one"))) for body in bodies
        ]
        await _until(lambda: len(llm.running) == 2)
        refused = await client.post("/v1/completions", json=BODY, headers={"x-api-key": "one"})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        assert (await client.post("/v1/completions", json=BODY, headers=of("two"))).status_code == 200
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await client.post("/v1/completions", json=BODY, headers=of("one"))).status_code == 200
    tenants = [call.tenant for call in llm.calls]
    assert len(set(tenants)) == 2 and "" not in tenants
    assert tenants == [tenants[0], tenants[0], tenants[2], tenants[0]]
    assert not any(key in tenant for key in ("one", "two") for tenant in tenants)


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_of_prompts_and_answers_use_up_a_keys_minute(stream: bool) -> None:
    llm = FakeLLM()
    async with client_of(llm, max_tokens_per_minute_per_key=100) as client:
        body = {"prompt": ["x" * 9, "y" * 9], "n": 2, "max_tokens": 15, "stream": stream}
        # Two prompts of ten tokens, four answers of fifteen.
        assert (await client.post("/v1/completions", json=body, headers=of("one"))).status_code == 200
        assert (await client.post("/v1/completions", json=body, headers=of("one"))).status_code == 200
        refused = await client.post("/v1/completions", json=body, headers=of("one"))
        assert refused.status_code == 429
        assert 35 <= int(refused.headers["retry-after"]) <= 38  # 60 tokens too many, 100 a minute
        assert (await client.get("/v1/models", headers=of("one"))).status_code == 200
        assert (await client.post("/v1/completions", json=body, headers=of("two"))).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
async def test_a_client_that_goes_away_pays_for_what_was_computed(stream: bool, prompts: int) -> None:
    llm = FakeLLM(delay=0.005)
    charged: list[int] = []
    context = make_context(llm, api_key=["one"], max_tokens_per_minute_per_key=10**9)
    with pytest.MonkeyPatch.context() as patch, running(context) as url:
        patch.setattr(KeyLimits, "charge", lambda self, key, tokens: charged.append(tokens))
        body = {"prompt": ["x" * 9] * prompts, "max_tokens": 400, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.15) as client:
                await _read(client, f"{url}/v1/completions", body)
        await _until(lambda: len(llm.aborted) == prompts)
    written = sum(charged) - 10 * prompts
    assert prompts * 3 < written < prompts * 200


async def _read(client: httpx.AsyncClient, url: str, body: dict[str, object]) -> None:
    """Read an answer; a stream is left after a few events, as if it were too slow."""
    async with client.stream("POST", url, json=body, headers=of("one")) as answer:
        seen = 0
        async for _ in answer.aiter_lines():
            seen += 1
            if seen == 20:
                raise httpx.ReadTimeout("enough")


@pytest.mark.parametrize("setting", ["max_concurrency_per_key", "max_tokens_per_minute_per_key"])
def test_limits_of_keys_need_keys(setting: str) -> None:
    with pytest.raises(ConfigError, match="api_key") as caught:
        create_server_config({setting: 3})
    assert caught.value.field == setting
    assert getattr(create_server_config({setting: 3, "api_key": ["secret"]}), setting) == 3


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_limits_hold_for_several_processes_together() -> None:
    names = ["", "one"]
    file = SharedTable.create(["running", "charged"], 2, names)
    now = [0.0]
    first, second = (
        KeyLimits(2, 600, running=table.tally("running"), charged=table.tally("charged"), clock=lambda: now[0])
        for table in (SharedTable(file, ["running", "charged"], 2, names, own) for own in range(2))
    )
    first.enter("one")
    second.enter("one")
    for limits in (first, second):
        with pytest.raises(RateLimited, match="2 requests"):
            limits.enter("one")
    first.charge("one", 400)
    second.charge("one", 300)
    first.leave("one")
    for limits in (first, second):  # 100 tokens too many: they flow in within ten seconds
        with pytest.raises(RateLimited, match="600 tokens a minute") as caught:
            limits.enter("one")
        assert caught.value.retry_after == pytest.approx(11)
    now[0] = 10.5
    second.enter("one")
    second.leave("one")
    # What the other used long ago has flowed in again, as the news came in time.
    for _ in range(60):
        now[0] += 1
        second.charge("one", 5)
        first.take_in()
    first.charge("one", 300)  # beside 295 that have not flowed in yet
    first.enter("one")
    os.close(file)
