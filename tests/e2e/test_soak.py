"""A minute of load: 32 streaming clients of the official SDK against the demo model (`make soak`)."""

import asyncio
import random
import time
from dataclasses import dataclass, field

import psutil
import pytest
from openai import AsyncOpenAI

from tests.e2e.serving import DemoServer

NUM_CLIENTS = 32
SECONDS = 60.0
WARM_UP = 15.0
MAX_GROWTH_BYTES = 24 * 2**20
QUESTIONS = [
    "What is the capital of France?",
    "What is 12 + 30?",
    "Which day comes after Monday?",
    "What is the opposite of hot?",
    "How do I start the server?",
    "Wie heißt die Hauptstadt von 日本? 🙂",
]


@dataclass
class Tally:
    finished: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def client_loop(client: AsyncOpenAI, number: int, deadline: float, tally: Tally) -> None:
    rng = random.Random(number)
    while time.monotonic() < deadline:
        try:
            stream = await client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": rng.choice(QUESTIONS)}],
                temperature=rng.choice([0.0, 0.8]),
                max_tokens=rng.choice([16, 64, 128]),
                stream=True,
                stream_options={"include_usage": True},
            )
            reason, usage = None, None
            async for chunk in stream:
                usage = chunk.usage or usage
                if chunk.choices:
                    reason = chunk.choices[0].finish_reason or reason
            if reason not in ("stop", "length") or usage is None:
                raise RuntimeError(f"a stream ended with finish_reason {reason} and usage {usage}")
            tally.finished += 1
            tally.tokens += usage.completion_tokens
        except Exception as error:
            tally.errors.append(repr(error))


async def watch_memory(processes: list[psutil.Process], deadline: float, tally: Tally) -> None:
    start = time.monotonic()
    while time.monotonic() < deadline:
        tally.memory.append((time.monotonic() - start, sum(process.memory_info().rss for process in processes)))
        await asyncio.sleep(1)


@pytest.mark.soak
async def test_a_minute_of_32_streaming_clients_ends_without_an_error_and_with_flat_memory() -> None:
    # A cache of which every block is soon touched, so that growth of the process is growth and not first use.
    with DemoServer("--kv-cache-memory-bytes", str(48 * 2**20), "--disable-uvicorn-access-log") as server:
        processes = [psutil.Process(server.process.pid), *server.descendants()]
        tally = Tally()
        deadline = time.monotonic() + SECONDS
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        await asyncio.gather(
            *(client_loop(client, number, deadline, tally) for number in range(NUM_CLIENTS)),
            watch_memory(processes, deadline, tally),
        )
        await client.close()
        await asyncio.sleep(0.5)
        warm = [rss for at, rss in tally.memory if WARM_UP <= at < WARM_UP + 5]
        last = [rss for at, rss in tally.memory if at > SECONDS - 5]
        growth = max(last) - max(warm)
        print(
            f"{tally.finished} requests, {tally.tokens / SECONDS:.0f} output tokens/s, "
            f"memory {max(warm) / 2**20:.0f} -> {max(last) / 2**20:.0f} MiB"
        )
        assert tally.errors == []
        assert tally.finished >= NUM_CLIENTS
        assert growth < MAX_GROWTH_BYTES
        assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        assert server.metric("vllm:request_success_total") == tally.finished
        assert server.metric("vllm:generation_tokens_total") == tally.tokens
