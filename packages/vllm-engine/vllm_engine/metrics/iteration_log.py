"""The line in the log for each step of the engine, for those who ask for it."""

from vllm_engine.logging import get_logger
from vllm_engine.messages import SchedulerStats

logger = get_logger(__name__)


def log_iteration(
    stats: SchedulerStats,
    *,
    num_requests: int,
    num_prefills: int,
    num_prefill_tokens: int,
    seconds: float,
    num_steps_ahead: int = 0,
) -> None:
    """The line of one step.

    Args:
        stats: the scheduler after the step.
        num_requests: requests that the step computed; those that are no prefills had one token each.
        num_prefills: those of them that had not computed all of their prompt (or, after a preemption, of their tokens).
        num_prefill_tokens: tokens computed of those.
        seconds: what the step took with its scheduling.
        num_steps_ahead: steps under way that the statistics do not count yet.
    """
    logger.info(
        "step %d: %d prefill requests with %d tokens, %d decode requests, %d waiting, %.2f ms",
        stats.num_steps + num_steps_ahead,
        num_prefills,
        num_prefill_tokens,
        num_requests - num_prefills,
        stats.num_waiting,
        1e3 * seconds,
    )
