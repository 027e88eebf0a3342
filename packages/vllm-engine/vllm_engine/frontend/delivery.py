"""``Delivery``: from the steps of the core to those who wait for their outputs, and to those who count."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_engine.frontend.admission import Admission
from vllm_engine.frontend.output_processor import OutputProcessor, ProcessedUpdates
from vllm_engine.frontend.output_queue import OutputQueue
from vllm_engine.frontend.pacing import Pacing
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineOutputs, SchedulerStats
from vllm_engine.metrics.stats import StatLogger, StepTotals

if TYPE_CHECKING:
    from vllm_engine.core.clients.base import AsyncClient

logger = get_logger(__name__)

MAX_STEPS_AT_ONCE = 4
"""Steps that consumers find in one piece at most, when the core is ahead of them."""


class Delivery:
    """Hands outputs to the consumers, each by its queue.

    They get their turn after each step. Where the core is ahead of them, they get it after several: each then finds the
    tokens of all in one output, which takes little more time than one, and so they catch up. Where they are about to
    fall behind (``Pacing``), a step without a first token or an end waits a moment for the next.
    """

    def __init__(self, stat_loggers: Sequence[StatLogger], *, slice_updates: int) -> None:
        """``stat_loggers`` are told of all steps and ends; consumers have a turn after ``slice_updates`` updates."""
        self.queues: dict[str, OutputQueue] = {}
        """Of the consumers, by the ids of their requests."""
        self.scheduler_stats = SchedulerStats()
        """State of the scheduler after the last step."""
        self.asleep = False
        """Whether the core sleeps, as far as is known here."""
        self.last_step = 0.0
        """When the last step came, in monotonic seconds."""
        self._stat_loggers = stat_loggers
        self._slice_updates = slice_updates

    async def run(self, client: "AsyncClient", outputs: OutputProcessor, admission: Admission | None) -> None:
        """Take what the core sends until it is gone, which raises ``EngineDead``."""
        pacing = Pacing()
        steps = 0
        try:
            while True:
                step = await client.next_outputs()
                patience = pacing.patience(step.timestamp)
                if patience and not (steps or client.has_outputs or outputs.is_urgent(step.updates)):
                    await client.wait_for_outputs(patience)
                await self._take(step, client, outputs, admission)
                steps += 1
                if steps == MAX_STEPS_AT_ONCE or not client.has_outputs:
                    steps = 0
                    await self._hand_out(outputs)
        finally:
            self.deliver(outputs.hand_out())

    def deliver(self, result: ProcessedUpdates) -> None:
        """Give outputs to the consumers who are there, and tell who is finished."""
        for output in result.outputs:
            queue = self.queues.get(output.request_id)
            if queue is not None:
                queue.put(output)
        for request_id, error in result.refused.items():
            queue = self.queues.get(request_id)
            if queue is not None:
                queue.fail(error)
        for stats in result.finished:
            for stat_logger in self._stat_loggers:
                try:
                    stat_logger.on_finished(stats)
                except Exception:
                    logger.exception("a statistics logger failed")

    def fail(self, error: Exception) -> None:
        """Raise an error in all consumers, after what they have not taken yet."""
        for queue in self.queues.values():
            queue.fail(error)

    async def _take(
        self, step: EngineOutputs, client: "AsyncClient", outputs: OutputProcessor, admission: Admission | None
    ) -> None:
        """Take in a step, and hand out all of it but the last slice."""
        self.last_step = time.monotonic()
        if admission is not None:
            admission.on_updates(step.updates)
        totals = StepTotals()
        for start in range(0, len(step.updates), self._slice_updates):
            if start:
                await self._hand_out(outputs)
            aborts = outputs.take(step.updates[start : start + self._slice_updates], step.timestamp, totals)
            if aborts:
                client.abort(aborts)
        if step.stats.sleep_level != self.scheduler_stats.sleep_level:
            self.asleep = step.stats.sleep_level is not None
        self.scheduler_stats = step.stats
        for stat_logger in self._stat_loggers:
            try:
                stat_logger.on_step(
                    step.stats,
                    totals.num_prompt_tokens,
                    totals.num_generation_tokens,
                    num_cached_tokens=totals.num_cached_tokens,
                    times_to_first_token=totals.times_to_first_token,
                    inter_token_latencies=totals.inter_token_latencies,
                )
            except Exception:
                logger.exception("a statistics logger failed")

    async def _hand_out(self, outputs: OutputProcessor) -> None:
        """Hand out what was taken, and give the consumers their turn."""
        self.deliver(outputs.hand_out())
        await asyncio.sleep(0)
