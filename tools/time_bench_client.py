#!/usr/bin/env python
"""What a client costs for each piece of a streamed answer, and how late it reads it: ours beside the usual libraries.

``python -m tools.time_bench_client --streams 256``: a mock server on one core streams to a client on another. The usual
libraries' clients read events and parse their JSON as they come; ours keeps them and does so when the load is over,
which is not counted. ``aiohttp`` is left out where it is not installed.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import numpy
import psutil
import uvloop

from tests.bench.mock_server import Plan, running
from vllm_bench.endpoints.completions import Completions
from vllm_bench.load.sender import Sender
from vllm_bench.records import RequestRecord
from vllm_bench.transport.client import HttpClient
from vllm_bench.workload.item import WorkItem
from vllm_cli.sse import SSEDecoder

TOKENS, FIRST_S, NEXT_S = 64, 0.05, 0.02
ITEM = WorkItem("word " * 256, output_len=TOKENS)
BODY = Completions().body(ITEM, "mock", {})

Send = Callable[[list[float]], Awaitable[None]]
"""Sends one request and notes when each piece of its answer came."""


@dataclass
class Reading:
    """Takes an answer in, as a client without our transport would."""

    times: list[float]
    decoder: SSEDecoder = field(default_factory=SSEDecoder)

    def take(self, data: bytes) -> None:
        """A piece of the stream."""
        now = time.perf_counter()
        for event in self.decoder.feed(data):
            if event.data != "[DONE]" and any(choice["text"] for choice in json.loads(event.data)["choices"]):
                self.times.append(now)


@asynccontextmanager
async def with_httpx(url: str) -> AsyncIterator[Send]:
    """``httpx.AsyncClient``."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:

        async def send(times: list[float]) -> None:
            reading = Reading(times)
            async with client.stream("POST", f"{url}/v1/completions", json=BODY) as response:
                async for data in response.aiter_bytes():
                    reading.take(data)

        yield send


@asynccontextmanager
async def with_aiohttp(url: str) -> AsyncIterator[Send]:
    """``aiohttp.ClientSession``."""
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:

        async def send(times: list[float]) -> None:
            reading = Reading(times)
            async with session.post(f"{url}/v1/completions", json=BODY) as response:
                async for data in response.content.iter_any():
                    reading.take(data)

        yield send


@asynccontextmanager
async def with_ours(url: str) -> AsyncIterator[Send]:
    """``vllm_bench.transport``."""
    async with HttpClient(url, {}) as client:
        sender = Sender(client, Completions(), "/v1/completions", "mock", {})
        records: list[tuple[RequestRecord, list[float]]] = []

        async def send(times: list[float]) -> None:
            record = RequestRecord(0.0, 0.0)
            records.append((record, times))
            await sender.send(ITEM, record)

        yield send
        sender.read_rest()
        for record, times in records:
            times += record.text_times


async def load(client: Callable[[str], object], url: str, streams: int, rounds: int) -> tuple[list[float], float]:
    """All moments, and CPU seconds of this process; the streams begin evenly spread over one answer's time."""
    times: list[float] = []
    async with client(url) as send:
        begin = time.process_time()

        async def one(number: int) -> None:
            await asyncio.sleep(number * TOKENS * NEXT_S / streams)
            for _ in range(rounds):
                await send(times)

        await asyncio.gather(*(one(number) for number in range(streams)))
        taken = time.process_time() - begin
    return times, taken


def main() -> None:
    """Measure each client in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256, help="at a time (default: 256)")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each (default: 2)")
    options = parser.parse_args()
    clients = {"httpx, asyncio": (with_httpx, asyncio.new_event_loop)}
    if importlib.util.find_spec("aiohttp"):
        clients["aiohttp, asyncio"] = (with_aiohttp, asyncio.new_event_loop)
        clients["aiohttp, uvloop"] = (with_aiohttp, uvloop.new_event_loop)
    clients["ours, asyncio"] = (with_ours, asyncio.new_event_loop)
    clients["ours, uvloop"] = (with_ours, uvloop.new_event_loop)
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    os.sched_setaffinity(0, {first})
    print(
        f"{options.streams} streams, {options.rounds} requests of {TOKENS} chunks each, one every {1e3 * NEXT_S:g} ms"
    )
    for name, (client, loop) in clients.items():
        with running([Plan(FIRST_S, NEXT_S)]) as server:
            for process in psutil.Process().children():
                process.cpu_affinity([last])
            with asyncio.Runner(loop_factory=loop) as runner:
                times, cpu = runner.run(load(client, server.url, options.streams, options.rounds))
            writes = sorted(moment for served in server.log() for moment in served.writes)
        late = 1e3 * (numpy.sort(times) - writes)
        print(
            f"{name:18} {1e6 * cpu / len(times):6.1f} us of CPU for a chunk; "
            f"read late by {late.mean():.2f} ms in the mean, p99 {numpy.percentile(late, 99):.2f}"
        )


if __name__ == "__main__":
    main()
