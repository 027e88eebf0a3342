"""A client that counts what it asked for and what it got, and the server's own counts to compare with."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

SYSTEM = "You are a helpful assistant who answers in short sentences and never guesses. " * 3
"""What many prompts begin with: some full blocks of the KV cache."""
LONG_STREAM = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 1.0}


def page_of(text: str) -> dict[str, float]:
    """Value by name, or by name and the values of the labels other than the usual ones, in brackets."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
            found[sample.name + (f"[{','.join(labels.values())}]" if labels else "")] = sample.value
    return found


class Ledger:
    """Requests of one client to one server, and their sums."""

    def __init__(self, url: str, seed: int) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64))
        self.random = random.Random(seed)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.unstarted_tokens = 0
        """Prompt tokens of requests that went away before they were computed."""
        self.completions = 0
        """Completions with a token."""
        self.finished: Counter[str] = Counter()
        """Prompts by the reason of their first completion: each is a request of the engine."""
        self.n = 0
        self.max_tokens = 0
        self.answers: Counter[tuple[str, str]] = Counter()
        """HTTP requests by route and status."""

    async def page(self) -> dict[str, float]:
        return page_of((await self.http.get("/metrics")).text)

    async def until(self, holds: Callable[[dict[str, float]], bool], seconds: float = 20) -> dict[str, float]:
        """The page as soon as it is as it should be; after that time, as it is."""
        end = time.monotonic() + seconds
        while not holds(page := await self.page()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return page

    # ---- requests that come to their end ----

    async def mixed(self, count: int, at_a_time: int = 12) -> None:
        """So many requests of all kinds, some at a time."""
        kinds = [self.complete, self.complete, self.chat, self.stream_chat, self.stream_completion, self.bad]
        left = [self.random.choice(kinds) for _ in range(count)]

        async def work() -> None:
            while left:
                await left.pop()()

        await asyncio.gather(*(work() for _ in range(at_a_time)))

    def _settings(self) -> dict[str, Any]:
        choose = self.random
        settings: dict[str, Any] = {"max_tokens": choose.randint(1, 12), "temperature": choose.choice([0, 1.0])}
        if choose.random() < 0.3:
            settings["n"] = choose.randint(2, 4)
        if choose.random() < 0.3:
            settings["stop"] = ["e", " t"]
        return settings

    def _prompt(self) -> str:
        """Half of them begin alike."""
        words = " ".join(self.random.choices(["sun", "rain", "what", "is", "a", "number", "seven"], k=6))
        return (SYSTEM if self.random.random() < 0.5 else "") + words

    def _messages(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self._prompt()}]

    async def complete(self) -> None:
        prompts = [self._prompt() for _ in range(self.random.randint(1, 3))]
        settings = self._settings()
        answer = await self._post("/v1/completions", {"prompt": prompts, **settings})
        self._count(answer["usage"], [one["finish_reason"] for one in answer["choices"]], settings, len(prompts))

    async def chat(self) -> None:
        settings = self._settings()
        answer = await self._post("/v1/chat/completions", {"messages": self._messages(), **settings})
        self._count(answer["usage"], [one["finish_reason"] for one in answer["choices"]], settings)

    async def stream_chat(self) -> None:
        await self._stream("/v1/chat/completions", {"messages": self._messages()})

    async def stream_completion(self) -> None:
        await self._stream("/v1/completions", {"prompt": self._prompt()})

    async def _stream(self, path: str, body: dict[str, Any]) -> None:
        settings = self._settings()
        reasons: dict[int, str] = {}
        usage = None
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with self.http.stream("POST", path, json={**body, **settings, **options}) as response:
            self.answers[path, f"{response.status_code // 100}xx"] += 1
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk["choices"]:
                    if choice.get("finish_reason"):
                        reasons[choice["index"]] = choice["finish_reason"]
                usage = chunk.get("usage") or usage
        assert usage is not None
        self._count(usage, [reasons[index] for index in sorted(reasons)], settings)

    async def bad(self) -> None:
        """Each is refused: none of them reaches the engine's loop."""
        path, body = self.random.choice(
            [
                ("/v1/completions", {"max_tokens": 3}),
                ("/v1/completions", {"prompt": "x", "temperature": -1}),
                ("/v1/completions", {"prompt": "x", "model": "other"}),
                ("/v1/completions", {"prompt": "word " * 5000}),
                ("/v1/chat/completions", {"messages": "x"}),
                ("/v1/chat/completions", {"messages": [], "n": 0}),
            ]
        )
        response = await self.http.post(path, json=body)
        assert 400 <= response.status_code < 500
        self.answers[path, "4xx"] += 1

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = await self.http.post(path, json=body)
        self.answers[path, f"{response.status_code // 100}xx"] += 1
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def _count(self, usage: dict[str, Any], reasons: list[str], settings: dict[str, Any], prompts: int = 1) -> None:
        n = settings.get("n", 1)
        assert len(reasons) == prompts * n
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        self.generated_tokens += usage["completion_tokens"]
        self.completions += len(reasons)
        self.finished.update(reasons[::n])
        self.n += n * prompts
        self.max_tokens += settings["max_tokens"] * prompts

    # ---- requests whose client goes away ----

    async def leave(self, running: int, waiting: int) -> None:
        """Streams that are left in their midst, and requests that are left before they begin.

        The engine sleeps meanwhile, so that the client knows of every token there is when it goes.
        """
        before = self.generated_tokens
        tokens = [0] * running
        streams = [asyncio.create_task(self._stream_on(tokens, place)) for place in range(running)]
        await self._wait_for(lambda: all(tokens))
        await self._control("/sleep?level=0")
        aborted = self.finished["abort"]
        page = await self.until(lambda page: page["vllm:generation_tokens_total"] == before + sum(tokens))
        assert page["vllm:generation_tokens_total"] == before + sum(tokens)
        body = {"prompt": LONG_STREAM["prompt"], "max_tokens": 5}
        queued = [asyncio.create_task(self.http.post("/v1/completions", json=body)) for _ in range(waiting)]
        page = await self.until(lambda page: page["vllm:num_requests_waiting_by_reason[deferred]"] == waiting)
        assert page["vllm:num_requests_waiting"] == page["vllm:num_requests_waiting_by_reason[deferred]"] == waiting
        assert page["vllm:num_requests_running"] == running
        assert page["vllm:engine_sleep_state[awake]"] == 0
        for task in (*streams, *queued):
            task.cancel()
        await asyncio.gather(*streams, *queued, return_exceptions=True)
        gone = aborted + running + waiting
        await self.until(lambda page: page["vllm:request_success_total[abort]"] == gone)
        await self._control("/wake_up")
        self.finished["abort"] += running + waiting
        self.generated_tokens += sum(tokens)
        self.completions += running
        self.n += running + waiting
        self.max_tokens += running * LONG_STREAM["max_tokens"] + waiting * body["max_tokens"]
        self.answers["/v1/completions", "2xx"] += running
        self.answers["/v1/completions", "4xx"] += waiting  # 499, which nobody reads

    async def _stream_on(self, tokens: list[int], place: int) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        body = {**LONG_STREAM, **options}
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line.removeprefix("data: "))["usage"]
                    if not tokens[place]:
                        self.prompt_tokens += usage["prompt_tokens"]
                    tokens[place] = usage["completion_tokens"]

    async def _control(self, path: str) -> None:
        response = await self.http.post(path)
        assert response.status_code == 200
        self.answers[path.split("?")[0], "2xx"] += 1

    async def _wait_for(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    # ---- the balance ----

    async def balance(self) -> None:
        """Compare all sums with the server's page."""
        requests = self.finished.total()
        answers = self.answers.total()
        page = await self.until(
            lambda page: (
                page["http_request_duration_highr_seconds_count"] == answers
                and not page["vllm:num_requests_running"]
                and not page["vllm:kv_cache_usage_perc"]
            )
        )
        told = {
            (labels.split(",")[0], labels.split(",")[1]): value
            for name, value in page.items()
            if name.startswith("http_requests_total[")
            for labels in [name.split("[")[1]]
        }
        assert told == dict(self.answers), (told, self.answers)
        reasons = {reason: page[f"vllm:request_success_total[{reason}]"] for reason in ("stop", "length", "abort")}
        assert reasons == {reason: self.finished[reason] for reason in reasons}
        assert page["vllm:request_success_total[error]"] == 0
        assert page["vllm:prompt_tokens_total"] == self.prompt_tokens
        assert (
            page["vllm:generation_tokens_total"] == page["vllm:request_generation_tokens_sum"] == self.generated_tokens
        )
        assert page["vllm:prompt_tokens_cached_total"] == self.cached_tokens > 0
        assert page["vllm:prompt_tokens_by_source_total[local_cache_hit]"] == self.cached_tokens
        computed = page["vllm:prompt_tokens_by_source_total[local_compute]"]
        assert computed + self.cached_tokens == self.prompt_tokens
        assert page["vllm:request_prompt_tokens_sum"] == self.prompt_tokens + self.unstarted_tokens
        assert page["vllm:request_params_n_sum"] == self.n
        assert page["vllm:request_params_max_tokens_sum"] == self.max_tokens
        for name in ("e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
            assert page[f"vllm:{name}_count"] == page[f"vllm:{name}_bucket[+Inf]"] == requests, name
        for name in ("params_n", "params_max_tokens", "num_preemptions", "prefill_kv_computed_tokens"):
            assert page[f"vllm:request_{name}_count"] == requests, name
        assert page["vllm:request_max_num_generation_tokens_count"] == requests
        assert page["vllm:inter_token_latency_seconds_count"] == self.generated_tokens - self.completions
        zero = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]
        zero += [f"num_requests_waiting_by_reason[{reason}]" for reason in ("capacity", "deferred")]
        operations = ("sleep", "release_kv_cache_memory", "wake_up")
        zero += [f"sleep_mode_operations_in_flight[{operation}]" for operation in operations]
        assert {name: page[f"vllm:{name}"] for name in zero} == dict.fromkeys(zero, 0)
        assert page["vllm:engine_sleep_state[awake]"] == 1
