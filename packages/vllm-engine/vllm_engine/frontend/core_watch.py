"""``CoreWatch``: an eye on the progress of the core, for as long as it is there."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_engine.core.clients.pulse import LOOK_SECONDS, Pulse
from vllm_engine.core.stacks import own_stacks
from vllm_engine.errors import EngineDead, EngineStalled
from vllm_engine.frontend.delivery import Delivery
from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.logging import get_logger

if TYPE_CHECKING:
    from vllm_engine.core.clients.base import AsyncClient

logger = get_logger(__name__)

STEP_POLL_SECONDS = 0.5
"""How often it is looked whether a step takes too long, where that has a limit."""


class CoreWatch:
    """Two watches over a core: over its pulse, which may come back, and over the time of its steps, which is final."""

    def __init__(
        self,
        client: "AsyncClient",
        delivery: Delivery,
        outputs: OutputProcessor,
        *,
        step_seconds: float | None,
        has_worker_calls: Callable[[], bool],
        on_dead: Callable[[EngineDead], None],
    ) -> None:
        """Begin to watch, in the event loop that runs.

        Args:
            client: of the core.
            delivery: knows when the last step ended, and whether the core sleeps.
            outputs: knows how many requests there are.
            step_seconds: what a step may take while there are requests; None is no limit.
            has_worker_calls: whether methods of the workers run, which may take as long as they take.
            on_dead: is called once, when a step has taken longer.
        """
        self._client = client
        self._delivery = delivery
        self._outputs = outputs
        self._on_dead = on_dead
        self._pulse = Pulse(
            client.ping,
            client.cpu_seconds,
            # Asleep, it may be waking up.
            has_other_work=lambda: delivery.asleep or has_worker_calls(),
        )
        client.on_message = self._pulse.heard
        self._tasks = [asyncio.create_task(self._watch_pulse(), name="pulse-watch")]
        if step_seconds is not None:
            self._tasks.append(asyncio.create_task(self._watch_steps(step_seconds), name="step-watch"))

    def check_progress(self) -> None:
        """Do nothing if the core makes progress. Raises ``EngineStalled`` if it does not for now."""
        if self._pulse.stalled:
            raise EngineStalled(f"the engine has made no progress for {self._pulse.silent_seconds:.1f} s")

    def stop(self) -> None:
        """Watch no longer."""
        for task in self._tasks:
            task.cancel()

    async def _watch_pulse(self) -> None:
        """Follow the core's progress, and tell in the log where everything stands when it stalls."""
        was_stalled = False
        while self._client.is_alive:
            await asyncio.sleep(LOOK_SECONDS)
            if was_stalled and not self._pulse.stalled:
                was_stalled = False
                logger.warning("the engine makes progress again")
            self._pulse.look()
            if self._pulse.stalled and not was_stalled:
                was_stalled = True
                logger.error("the engine has made no progress for %.1f s", self._pulse.silent_seconds)
                logger.error("stacks of the frontend process:\n%s", own_stacks())
                if stacks := await self._client.stacks():
                    logger.error("stacks of the engine process:\n%s", stacks)

    async def _watch_steps(self, limit: float) -> None:
        """Take the engine for dead when requests wait, and no step ends for ``limit`` seconds."""
        was_late = False
        while True:
            await asyncio.sleep(min(limit / 4, STEP_POLL_SECONDS))
            now = time.monotonic()
            if self._delivery.asleep or not self._outputs.num_requests:
                self._delivery.last_step = now
            is_late = now - self._delivery.last_step > limit
            # Seen twice, as after a pause of this process a step may have come that nobody has handled yet.
            if is_late and was_late:
                logger.error("no step of the engine has ended for %g s (VLLM_ENGINE_ITERATION_TIMEOUT_S)", limit)
                self._on_dead(EngineDead(f"no step of the engine has ended for {limit:g} s"))
                return
            was_late = is_late
