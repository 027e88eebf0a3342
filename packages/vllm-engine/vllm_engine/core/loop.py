"""The busy loop around an engine core: take messages, step while there is work, send what came out."""

from collections.abc import Callable
from typing import Protocol

from vllm_engine.core.engine_core import EngineCore
from vllm_engine.errors import InvalidRequest
from vllm_engine.logging import get_logger
from vllm_engine.messages import AbortRequests, AddRequests, FromCore, Ping, Pong, RpcCall, RpcResult, Shutdown, ToCore

logger = get_logger(__name__)


class Receive(Protocol):
    """The next message to the core; None if there is none and ``block`` is False."""

    def __call__(self, *, block: bool) -> ToCore | None: ...


def run_core(core: EngineCore, receive: Receive, send: Callable[[FromCore], None]) -> None:
    """Serve until ``Shutdown``. Sleeps in ``receive`` when no request is there.

    Raises:
        EngineDead: when the core gives up.
    """
    while True:
        message = receive(block=not (core.has_unfinished() or core.has_idle_work))
        while message is not None:
            if isinstance(message, Shutdown):
                return
            _handle(core, message, send)
            message = receive(block=False)
        if core.has_unfinished():
            send(core.step())
        elif core.has_idle_work:
            core.use_idle_time()


def _handle(core: EngineCore, message: ToCore, send: Callable[[FromCore], None]) -> None:
    if isinstance(message, AddRequests):
        core.add(message.unpacked())
        if core.is_sleeping:
            send(core.step())  # no step follows that would tell how many wait
    elif isinstance(message, AbortRequests):
        core.abort(message.request_ids)
        if not core.has_unfinished():
            send(core.step())  # no step follows that would tell that nothing runs any more
    elif isinstance(message, Ping):
        send(Pong())
    elif isinstance(message, RpcCall):
        level = core.sleep_level
        try:
            send(RpcResult(message.call_id, core.call(message.method, message.args)))
        except InvalidRequest as error:
            send(RpcResult(message.call_id, error=str(error), bad_argument=error.field or ""))
        except Exception as error:
            logger.exception("control call %s failed", message.method)
            send(RpcResult(message.call_id, error=f"{type(error).__name__}: {error}"))
        if core.sleep_level != level:
            send(core.step())  # so that all clients know, and not only the one that called
