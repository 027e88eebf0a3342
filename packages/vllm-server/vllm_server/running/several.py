"""``vllm serve`` with several API processes: this one starts them and the engine core, and serves nothing itself.

An API process that dies costs its own requests, whose work in the engine ends at once; the others go on, and a new one
takes its place on the same socket. One that hangs is killed: the system would go on to give it its share of the
connections. When they die again and again, the server ends with exit code 1.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.pulse import LOOK_SECONDS
from vllm_engine.frontend.tally import SharedTable
from vllm_engine.logging import get_logger, logging_in_force, startup_phase
from vllm_server.api_keys import tenant_name
from vllm_server.config import ServerConfig, load_chat_template
from vllm_server.running.announcement import announce
from vllm_server.running.api_child import ApiChild
from vllm_server.running.channel import LIVE_TALLIES, TALLIES, ApiLaunch, End, Stop, StopAtOnce, TellStacks
from vllm_server.running.lifecycle import first
from vllm_server.running.stop_signals import StopSignals
from vllm_server.running.tls import create_tls
from vllm_server.telemetry.told_counts import ToldCounts

if TYPE_CHECKING:
    from vllm_engine.core.clients.process import ProcessClient

logger = get_logger(__name__)

MAX_DEATHS = 5
DEATHS_SECONDS = 60.0
"""More deaths of API processes than so many in this time are the end of the server."""
GRACE_SECONDS = 2.5
"""How long an API process may take, when its requests are to end, until it is ended by force."""
END_SECONDS = 1.5
"""How long it then gets to close its connections."""
STACKS_SECONDS = 0.5
"""How long one that hangs gets to tell where."""
_POLL_SECONDS = 0.02


async def serve(engine_config: EngineConfig, server_config: ServerConfig, listeners: Sequence[socket.socket]) -> int:
    """Serve with a process for each of ``listeners`` until a signal comes, or the engine or too many processes die.

    Returns the exit code: 0, or 1 for deaths.

    Raises:
        ConfigError: for a setting that cannot be honoured.
        EngineDead: when the engine core, or an API process, ends before it is ready.
    """
    launched = time.perf_counter()
    load_chat_template(server_config.chat_template)  # what is wrong is told before the model is touched
    create_tls(server_config)
    with StopSignals() as signals:
        with startup_phase(logger, "frontend imports", {}):
            from vllm_engine.core.clients.process import ProcessClient
            from vllm_engine.frontend.engine_frontend import resolve_config, resolve_model_path

        config = resolve_config(engine_config)
        resolving = asyncio.create_task(asyncio.to_thread(resolve_model_path, config))
        if not await first(resolving, signals.stop.wait()):
            return 0
        model_path: Path = resolving.result()
        core = ProcessClient(config, model_path, with_others=True)
        fleet = None
        try:
            loading = asyncio.create_task(core.start())
            fleet = Fleet(core, config, server_config, listeners)
            if not await first(asyncio.create_task(_all(loading, *fleet.starts())), signals.stop.wait()):
                return 0
            announce(fleet.example, server_config, config, listeners[0], time.perf_counter() - launched)
            return await fleet.serve_until_the_end(signals, config.engine.shutdown_timeout)
        finally:
            if fleet is not None:
                await fleet.close()
            loading.cancel()
            await core.aclose()
            await asyncio.gather(loading, return_exceptions=True)


async def _all(*wanted: Awaitable[Any]) -> None:
    await asyncio.gather(*wanted)


class Fleet:
    """The API processes of one server."""

    def __init__(
        self,
        core: "ProcessClient",
        engine_config: EngineConfig,
        server_config: ServerConfig,
        listeners: Sequence[socket.socket],
    ) -> None:
        """Start one for each listener."""
        self._core = core
        self._engine_config = engine_config
        self._server_config = server_config
        self._listeners = listeners
        keys = [*(server_config.api_key or ()), *(server_config.admin_api_key or ())]
        self._tenants = ["", *(tenant_name(key.encode()) for key in keys)]
        self._table = SharedTable.create(TALLIES, len(listeners), self._tenants)
        self._told_counts = ToldCounts.create(len(listeners))
        self._counts = SharedTable(self._table, TALLIES, len(listeners), self._tenants, None)
        self._changed = asyncio.Event()
        self._num_started = 0
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._children: list[ApiChild] = []
        for index in range(len(listeners)):
            self._children.append(self._start(index))

    def starts(self) -> list[Awaitable[Any]]:
        """Each comes when its process takes requests, or fails when it cannot."""
        return [child.listening for child in self._children]

    @property
    def example(self) -> tuple[str, dict[str, Any]]:
        """Route and body of a request to try the server with, when all have started."""
        listening = self._children[0].listening.result()
        return listening.route, listening.body

    async def serve_until_the_end(self, signals: StopSignals, shutdown_timeout: float) -> int:
        """Replace those that die, until it is time to end; then end in good order. Returns the exit code."""
        code = 0
        stop = asyncio.create_task(signals.stop.wait())
        watch = asyncio.create_task(self._kill_those_that_hang())
        try:
            # When the engine dies, they end their requests, and say that nothing runs any more.
            while not stop.done() and not self._all_done and not code:
                news = asyncio.create_task(self._changed.wait())
                await asyncio.wait((stop, news), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                self._changed.clear()
                if not stop.done() and not self._replace_dead():
                    code = 1
        finally:
            stop.cancel()
            watch.cancel()
        died = not self._core.is_alive
        await self._drain(signals, shutdown_timeout)
        return 1 if died else code

    async def close(self) -> None:
        """End those that have not ended by now."""
        await asyncio.gather(*(child.close() for child in self._children))
        for child in self._children:
            if child.listening.done() and not child.listening.cancelled():
                child.listening.exception()  # seen: who waited for it has heard of another one
        os.close(self._table)
        os.close(self._told_counts)

    @property
    def _all_done(self) -> bool:
        return all(child.is_done for child in self._children)

    def _start(self, index: int) -> ApiChild:
        self._num_started += 1
        launch = ApiLaunch(
            engine=self._engine_config,
            server=self._server_config,
            core=self._core.address(f"api-{self._num_started}", tells_stacks=index == 0),
            index=index,
            count=len(self._listeners),
            listener=self._listeners[index].fileno(),
            table=self._table,
            told_counts=self._told_counts,
            tenants=self._tenants,
            folder=self._core.folder,
            log_config=logging_in_force(),
        )
        return ApiChild(launch, self._changed.set)

    async def _kill_those_that_hang(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            hung = [child for child in self._children if child.hangs()]
            for child in hung:
                logger.error("API process %d (pid %d) answers nothing: it is killed", child.index, child.pid)
                child.tell(TellStacks())
            if hung:
                await asyncio.sleep(STACKS_SECONDS)
            for child in hung:
                child.kill()

    def _replace_dead(self) -> bool:
        """Put a new process in the place of each that has died, unless the engine has. False when it is no use."""
        for child in self._children:
            if child.exit_code is None or not self._core.is_alive:
                continue
            logger.error(
                "API process %d (pid %d) has died with code %d: its requests are lost",
                child.index, child.pid, child.exit_code,
            )  # fmt: skip
            self._core.forget(child.name)
            self._counts.clear(child.index, LIVE_TALLIES)
            self._deaths.append(time.monotonic())
            if len(self._deaths) > MAX_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_SECONDS:
                logger.error("%d API processes have died in a short time: the server ends", len(self._deaths))
                return False
            fresh = self._start(child.index)
            fresh.listening.add_done_callback(_tell_of_start(fresh))
            self._children[child.index] = fresh
        return True

    async def _drain(self, signals: StopSignals, shutdown_timeout: float) -> None:
        for child in self._children:
            child.tell(Stop())
        logger.info("stopping: the requests of %d API processes have %g s to finish", len(self._children),
                    shutdown_timeout)  # fmt: skip
        deadline = time.monotonic() + shutdown_timeout + GRACE_SECONDS
        told = False
        while not self._all_done and time.monotonic() < deadline:
            if signals.stop_at_once.is_set() and not told:
                told = True
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                for child in self._children:
                    child.tell(StopAtOnce())
            await asyncio.sleep(_POLL_SECONDS)
        for child in self._children:
            if child.is_done:
                child.tell(End())
            else:
                logger.error("API process %d (pid %d) does not end its requests: it is killed", child.index, child.pid)
                child.kill()
        deadline = time.monotonic() + END_SECONDS
        while any(child.exit_code is None for child in self._children) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)


def _tell_of_start(child: ApiChild) -> Any:
    def tell(listening: "asyncio.Future[Any]") -> None:
        if not listening.cancelled() and listening.exception() is None:
            logger.warning("API process %d is there again (pid %d)", child.index, child.pid)
        elif not listening.cancelled():
            with contextlib.suppress(Exception):
                logger.error("API process %d could not be started anew: %s", child.index, listening.exception())
            child.kill()

    return tell
