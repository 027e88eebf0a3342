"""A closed loop: so many clients, each sending its next request when its last one has ended."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from vllm_bench.streamed_request import RequestTiming, send

_PAUSE_AFTER_FAILURE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class LoadResult:
    """All requests of one run."""

    timings: list[RequestTiming]
    seconds: float
    """From the first request sent to the last one ended."""
    client_cpu_share: float
    """CPU time of this process over ``seconds``; near 1, the client and not the server sets the pace."""


async def run_closed_loop(
    client: httpx.AsyncClient,
    url: str,
    body_of: Callable[[int], dict[str, object]],
    *,
    num_clients: int,
    num_requests: int | None = None,
    seconds: float | None = None,
) -> LoadResult:
    """Load ``url`` with ``num_clients`` requests at a time.

    Args:
        body_of: JSON body of the request with that number, counted from 0.
        num_requests: end after so many requests; None: no such limit.
        seconds: send nothing new after so long; what is on its way is read to its end and counts.
    """
    numbers: Iterator[int] = itertools.count() if num_requests is None else iter(range(num_requests))
    timings: list[RequestTiming] = []
    cpu_start = time.process_time()
    start = time.perf_counter()

    async def one_client() -> None:
        while seconds is None or time.perf_counter() - start < seconds:
            number = next(numbers, None)
            if number is None:
                return
            timing = await send(client, url, body_of(number))
            timings.append(timing)
            if timing.error is not None:
                # A server that refuses at once is not to be hammered.
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)

    await asyncio.gather(*(one_client() for _ in range(num_clients)))
    cpu_seconds = time.process_time() - cpu_start
    end = max((timing.ended for timing in timings), default=time.perf_counter())
    return LoadResult(timings, end - start, cpu_seconds / max(end - start, 1e-9))
