"""Thousands of short requests of all kinds, many given up half-way: nothing grows, nothing is left behind."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.e2e.serving import DemoServer

NUM_CLIENTS = 32
MAX_SLOPE = 2**20
"""Bytes for each thousand requests, of each process, once it is warm."""
FLAGS = ["--max-model-len", "256", "--num-gpu-blocks-override", "256", "--disable-uvicorn-access-log"]
WORDS = "the of a Monday Paris 12 + 30 ? capital opposite hot server 日本 🙂".split()
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


@dataclass
class Tally:
    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[int, ...]] = field(default_factory=list)
    """Requests so far, and the resident bytes of each process."""


def some_request(rng: random.Random) -> tuple[str, dict[str, Any], int]:
    """Route, body, and the status that it gets."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))
    body: dict[str, Any] = {"max_tokens": rng.choice([1, 4, 8, 24]), "temperature": rng.choice([0, 0.8])}
    kind = rng.randrange(10)
    if kind < 4:
        body["prompt"] = rng.choice([text, [text, "b"], [1, 2, 3], [[4, 5], [6]]])
        body |= rng.choice([{}, {"n": 2}, {"logprobs": 2}, {"echo": True}, {"stop": [" the", "."]}, {"seed": 3}])
        return "/v1/completions", body, 200
    if kind < 7:
        body["messages"] = [{"role": "user", "content": text}]
        body |= rng.choice([{}, {"logprobs": True, "top_logprobs": 1}, {"logit_bias": {"5": 2}}, {"ignore_eos": True}])
        return "/v1/chat/completions", body, 200
    if kind == 7:
        return "/tokenize", {"prompt": text}, 200
    if kind == 8:
        return "/v1/completions", {"prompt": text, "temperature": -1}, 400
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": f"{text} " * 300}]}, 400


async def one(client: httpx.AsyncClient, rng: random.Random, tally: Tally) -> None:
    route, body, expected = some_request(rng)
    manner = rng.choice(["whole", "whole", "stream", "stream", "left", "cut"])
    if expected != 200 or route == "/tokenize":
        manner = "whole"
    try:
        if manner in ("whole", "cut"):
            # A request that is cut is given up while it waits or is computed, or is just about to be answered.
            seconds = 30.0 if manner == "whole" else rng.choice([0.001, 0.01, 0.05])
            response = await client.post(route, json=body, timeout=httpx.Timeout(30.0, read=seconds))
            tally.outcomes[f"{manner} {response.status_code}"] += 1
            if response.status_code != expected:
                tally.faults.append(f"{response.status_code}, not {expected}: {response.text[:300]}")
            return
        async with client.stream("POST", route, json={**body, "stream": True}, timeout=30) as stream:
            leaves_after = rng.randint(0, 6) if manner == "left" else 10**9
            events, last = 0, ""
            async for line in stream.aiter_lines():
                events += line.startswith("data: ")
                if events > leaves_after:
                    break
                last = line or last
            else:
                if last != "data: [DONE]":
                    tally.faults.append(f"a stream ended with {last[:300]}")
        tally.outcomes[f"{manner} {stream.status_code}"] += 1
    except httpx.ReadTimeout:
        tally.outcomes[f"{manner} short"] += 1
        if manner != "cut":
            tally.faults.append("a request took 30 s")
    except httpx.HTTPError as error:
        tally.faults.append(repr(error))


async def client_loop(url: str, number: int, total: int, processes: list[psutil.Process], tally: Tally) -> None:
    rng = random.Random(number)
    async with httpx.AsyncClient(base_url=url) as client:
        while tally.asked < total:
            tally.asked += 1
            if tally.asked % max(20, total // 400) == 0:
                tally.memory.append((tally.asked, *(process.memory_info().rss for process in processes)))
            await one(client, rng, tally)


def slopes(memory: list[tuple[int, ...]], warm: int) -> list[float]:
    """Growth of each process in bytes for a thousand requests, by a line through what was measured when warm."""
    rows = np.array([row for row in memory if row[0] >= warm], dtype=np.float64)
    return [float(np.polyfit(rows[:, 0], rows[:, column], 1)[0] * 1000) for column in range(1, rows.shape[1])]


def descriptors(processes: list[psutil.Process]) -> list[int]:
    return [process.num_fds() for process in processes]


def more_than(before: list[int], after: list[int]) -> bool:
    return any(now > then for then, now in zip(before, after, strict=True))


async def soak(total: int, warm: int) -> list[float]:
    with DemoServer(*FLAGS, env={"VLLM_CHECK_INVARIANTS": "1"}) as server:
        processes = [psutil.Process(server.process.pid), *server.descendants()]
        first = Tally()
        await client_loop(server.url, 0, 20, processes, first)  # what is opened with the first requests may stay
        await asyncio.sleep(0.3)
        before = descriptors(processes)
        tally, begun = Tally(), time.monotonic()
        await asyncio.gather(
            *(client_loop(server.url, 1 + number, total, processes, tally) for number in range(NUM_CLIENTS))
        )
        seconds = time.monotonic() - begun
        growth = slopes(tally.memory, warm)
        print(
            f"{tally.asked} requests in {seconds:.0f} s, {dict(sorted(tally.outcomes.items()))}; for each thousand: "
            + ", ".join(f"{slope / 2**20:+.2f} MiB" for slope in growth)
        )
        assert tally.faults[:5] == []
        assert {"whole 200", "whole 400", "stream 200", "left 200", "cut short"} <= tally.outcomes.keys()
        deadline = time.monotonic() + 10
        while any(server.metric(name) for name in GAUGES) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        assert {name: server.metric(name) for name in GAUGES} == dict.fromkeys(GAUGES, 0.0)
        while more_than(before, descriptors(processes)) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)  # connections are closed in their own time
        assert not more_than(before, descriptors(processes))
        assert "Traceback" not in server.log
        assert server.stop(signal.SIGTERM) == 0
        return growth


async def test_hundreds_of_mixed_requests_leave_nothing_behind() -> None:
    await soak(400, 200)


@pytest.mark.soak
async def test_thousands_of_mixed_requests_leave_nothing_behind_and_memory_stays_flat() -> None:
    total = int(os.environ.get("SOAK_REQUESTS", "20000"))
    growth = await soak(total, total // 4)
    assert max(growth) < MAX_SLOPE
