"""The clients for an event loop: what does not depend on where the core is."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.output_inbox import OutputInbox
from vllm_engine.errors import ConfigError, EngineDead, InvalidRequest
from vllm_engine.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    FromCore,
    Ping,
    Pong,
    RpcCall,
    RpcResult,
    ToCore,
)


class AsyncClient(ABC):
    """What all asynchronous clients share: outputs in order, answers to calls, and the news of a death."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self._outputs = OutputInbox()
        self._ready: asyncio.Future[EngineReady] | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_call_id = 0
        self._death: EngineDead | None = None
        self.on_message: Callable[[], None] | None = None
        """Called with each message of the core, in the event loop."""

    @property
    def is_alive(self) -> bool:
        """Whether the core can take requests."""
        ready = self._ready
        return self._death is None and ready is not None and ready.done() and not ready.cancelled()

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests. Raises ``EngineDead`` when nobody would take them."""
        self._send(AddRequests.packed(requests))

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids, and any after a death, are ignored."""
        if self._death is None:
            self._send(AbortRequests(request_ids))

    def ping(self) -> None:
        """Ask the core for a sign of life: its answer is a message like others. Ignored after a death."""
        if self._death is None:
            self._send(Ping())

    @property
    def has_outputs(self) -> bool:
        """Whether outputs of another step are here already."""
        return not self._outputs.empty()

    async def wait_for_outputs(self, seconds: float) -> None:
        """Until outputs of another step are here, or for so long."""
        await self._outputs.wait(seconds)

    async def next_outputs(self) -> EngineOutputs:
        """Wait for the outputs of the next step. Raises ``EngineDead`` when there will be none."""
        outputs = await self._outputs.get()
        if outputs is None:
            self._outputs.put_nowait(None)  # whoever waits next learns it too
            raise self._death or EngineDead("the engine is closed")
        return outputs

    async def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core. It answers after the step that it is in.

        Raises:
            InvalidRequest: when an argument makes no sense to it.
            RuntimeError: with its message when it fails, or when ``VLLM_RPC_TIMEOUT`` has passed without an answer.
        """
        milliseconds: int | None = envs.get("VLLM_RPC_TIMEOUT")
        self._next_call_id += 1
        call_id = self._next_call_id
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(RpcCall(call_id, method, list(args)))
            return await asyncio.wait_for(future, None if milliseconds is None else milliseconds / 1e3)
        except TimeoutError as error:
            raise RuntimeError(f"no answer to {method} in {milliseconds} ms (VLLM_RPC_TIMEOUT)") from error
        finally:
            self._calls.pop(call_id, None)

    def close(self) -> None:
        """End the core, and wait until it has ended. May be called again."""
        self._ask_to_end()
        self._wait_for_end()
        self._clean_up()

    async def aclose(self) -> None:
        """``close``, with the event loop free while the core ends."""
        self._ask_to_end()
        try:
            await asyncio.to_thread(self._wait_for_end)
        finally:
            self._clean_up()

    @abstractmethod
    def cpu_seconds(self) -> float | None:
        """Processor time that the core has used so far; None where the system does not tell."""

    @abstractmethod
    async def stacks(self) -> str:
        """Where the threads of the core's process are, or why that is not known; empty when it is this process."""

    @abstractmethod
    async def start(self) -> EngineReady:
        """Wait for the model to be loaded. Raises ``ConfigError`` or ``EngineDead`` when that fails."""

    @abstractmethod
    def _ask_to_end(self) -> None:
        """Tell the core to end, and everyone who waits that it will. Does not wait."""

    @abstractmethod
    def _wait_for_end(self) -> None:
        """Block until the core has ended. Runs in any thread."""

    @abstractmethod
    def _clean_up(self) -> None:
        """Give back what is left when the core has ended. Does not wait."""

    def _begin(self) -> "asyncio.Future[EngineReady]":
        """What ``start`` waits for. Raises ``EngineDead`` when there is nothing to start any more."""
        if self._death is not None:
            raise self._death
        self._ready = asyncio.get_running_loop().create_future()
        return self._ready

    @abstractmethod
    def _send(self, message: ToCore) -> None:
        """Hand a message to the core without waiting. Raises ``EngineDead`` when the core is gone."""

    def _receive(self, message: FromCore) -> None:
        """Sort a message from the core. Runs in the event loop."""
        if self.on_message is not None:
            self.on_message()
        if isinstance(message, EngineOutputs):
            self._outputs.put_nowait(message)
        elif isinstance(message, RpcResult):
            future = self._calls.get(message.call_id)
            if future is not None and not future.done():
                if message.error is None:
                    future.set_result(message.value)
                elif message.bad_argument is not None:
                    future.set_exception(InvalidRequest(message.error, field=message.bad_argument or None))
                else:
                    future.set_exception(RuntimeError(message.error))
        elif isinstance(message, EngineReady):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
        elif not isinstance(message, Pong):
            self._on_failed(message)

    def _on_failed(self, failure: EngineFailed) -> None:
        if self._ready is not None and not self._ready.done() and failure.config_field is not None:
            self._ready.set_exception(ConfigError(failure.message, field=failure.config_field or None))
        self._die(failure.message)

    def _die(self, message: str) -> None:
        """Tell everyone who waits that the core is gone. The first message stands."""
        if self._death is not None:
            return
        self._death = EngineDead(message)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineDead(message))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDead(message))
        self._outputs.put_nowait(None)
