"""How the server ends: it drains when a signal comes, and ends what still runs when that takes too long."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from vllm_engine import envs
from vllm_engine.errors import EngineDead
from vllm_engine.logging import get_logger
from vllm_server.in_flight import InFlight
from vllm_server.running.one_of_several import Signals

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_server.running.uvicorn_server import Server

logger = get_logger(__name__)

HEALTH_POLL_SECONDS = 0.5
DRAIN_POLL_SECONDS = 0.02
ABORT_SECONDS = 1.0
"""How long aborted requests get to send their last event."""
CLOSE_SECONDS = 0.5
"""How long the connections then get to close."""


async def serve_until_the_end(
    serving: "asyncio.Task[None]",
    server: "Server",
    in_flight: InFlight,
    llm: "AsyncLLM",
    signals: Signals,
    shutdown_timeout: float,
    *,
    stay: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Wait for a signal or the engine's death, and end in good order. Returns the exit code.

    While requests that run get ``shutdown_timeout`` seconds to finish, the port stays open: new requests are answered
    with 503, and so is who asks whether the server is ready. A second signal, or the end of that time, ends what still
    runs with an error. When nothing runs any more, the port stays open for as long as ``stay`` lasts.
    """
    death = asyncio.create_task(_engine_death(llm))
    stop = asyncio.create_task(signals.stop.wait())
    try:
        await asyncio.wait((serving, death, stop), return_when=asyncio.FIRST_COMPLETED)
        if death.done() and envs.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"):
            logger.error("the engine has died; the server stays and answers 503 (VLLM_KEEP_ALIVE_ON_ENGINE_DEATH)")
            await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
        died = death.done()
        if stop.done():
            logger.info("stopping: %d running requests have %g s to finish", len(in_flight), shutdown_timeout)
        elif died:
            logger.error("the engine has died; the server ends")
        in_flight.drain()

        def drained() -> bool:
            died_meanwhile = death.done() and not died
            return not len(in_flight) or signals.stop_at_once.is_set() or died_meanwhile or serving.done()

        await _wait_until(drained, ABORT_SECONDS if died else shutdown_timeout)
        if len(in_flight) and stop.done():
            logger.warning("%d requests have not finished: they are ended", len(in_flight))
        in_flight.abort_all()
        await _wait_until(lambda: not len(in_flight), ABORT_SECONDS)
        if stay is not None:
            await stay()
        server.should_exit = True
        await asyncio.wait((serving,), timeout=CLOSE_SECONDS)
        server.force_exit = True
        await asyncio.wait((serving,), timeout=CLOSE_SECONDS)
        if serving.done() and (error := serving.exception()) is not None:
            logger.error("the HTTP server failed", exc_info=error)
            return 1
        return 1 if died else 0
    finally:
        for task in (serving, death, stop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(DRAIN_POLL_SECONDS)


async def _engine_death(llm: "AsyncLLM") -> None:
    """Returns when the engine is dead."""
    while True:
        try:
            llm.check_health()
        except EngineDead:
            return
        await asyncio.sleep(HEALTH_POLL_SECONDS)
