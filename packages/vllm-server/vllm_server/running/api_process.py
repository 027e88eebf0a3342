"""One of several API processes of a server: ``python -m vllm_server.running.api_process``, see ``several``."""

import asyncio
import os
import signal
import socket
import sys
import threading
from types import TracebackType

from vllm_engine.core.stacks import own_stacks
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.frontend.tally import SharedTable
from vllm_engine.logging import configure_logging, get_logger
from vllm_server.running import lifecycle
from vllm_server.running.channel import (
    TALLIES,
    ApiLaunch,
    Drained,
    End,
    Failed,
    Listening,
    ParentChannel,
    Ping,
    Pong,
    Stop,
    StopAtOnce,
    TellStacks,
    ToApi,
)
from vllm_server.running.event_loop import loop_factory
from vllm_server.running.one_of_several import OneOfSeveral
from vllm_server.siblings import Siblings
from vllm_server.telemetry.told_counts import ToldCounts

logger = get_logger("vllm_server.running.api_process")  # not __name__, which is "__main__" in a program


class ToldSignals:
    """In the place of ``StopSignals``: the launching process gets the signals, and tells what is to be done."""

    def __init__(self, channel: ParentChannel) -> None:
        self.stop = asyncio.Event()
        self.stop_at_once = asyncio.Event()
        self.end = asyncio.Event()
        self._channel = channel

    def __enter__(self) -> "ToldSignals":
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="parent-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The thread ends with the process."""

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while (message := self._channel.receive()) is not None:
            if isinstance(message, TellStacks):
                logger.error("stacks of this process:\n%s", own_stacks())
            else:
                loop.call_soon_threadsafe(self._take, message)
        os._exit(1)  # the launching process is gone, and nobody would ever end this one

    def _take(self, message: ToApi) -> None:
        if isinstance(message, Stop):
            self.stop.set()
        elif isinstance(message, StopAtOnce):
            self.stop.set()
            self.stop_at_once.set()
        elif isinstance(message, End):
            self.end.set()
        elif isinstance(message, Ping):
            self._channel.send(Pong())


async def serve(launch: ApiLaunch, channel: ParentChannel) -> int:
    """Serve on the inherited socket until told to end. Returns the exit code."""
    signals = ToldSignals(channel)

    async def stay() -> None:
        channel.send(Drained())
        await signals.end.wait()

    one = OneOfSeveral(
        signals=signals,
        core=launch.core,
        counts=SharedTable(launch.table, TALLIES, launch.count, launch.tenants, launch.index),
        told_counts=ToldCounts(launch.told_counts, launch.count, launch.index),
        siblings=Siblings(launch.folder, launch.index, launch.count),
        tell_listening=lambda route, body: channel.send(Listening(route, body)),
        stay=stay,
    )
    with socket.socket(fileno=launch.listener) as listener:
        return await lifecycle.serve(launch.engine, launch.server, listener, one)


def main() -> int:
    """Entry point of an API process."""
    # The terminal sends Ctrl-C to the whole group, a service manager SIGTERM: the launching process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = ParentChannel(sys.stdin.fileno())
    launch = channel.receive()
    if not isinstance(launch, ApiLaunch):
        return 1
    try:
        configure_logging(config=launch.log_config)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(launch, channel))
    except ConfigError as error:
        channel.send(Failed(str(error), error.field or ""))
        return 2
    except EngineDead as error:
        channel.send(Failed(str(error)))
        return 1
    except Exception as error:
        logger.exception("the API process ends")
        channel.send(Failed(f"{type(error).__name__}: {error}"))
        return 1


if __name__ == "__main__":
    sys.exit(main())
