"""What the engine measures of requests and steps, and who is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vllm_engine.messages import SchedulerStats
from vllm_engine.outputs import FinishReason


@dataclass(frozen=True, slots=True)
class RequestStats:
    """A finished request with all its ``n`` completions. Times in seconds; None where it did not get so far.

    ``queue_time``: until first scheduled. ``prefill_time``: from there to the first token. ``decode_time``: from the
    first to the last token. ``inference_time``: both together. ``e2e_latency``: from arrival to the end.
    ``finish_reason`` is that of the first completion, or ``error`` if any failed. ``max_tokens`` is what was asked for,
    None for as much as fits. ``inter_token_latencies`` are the same as ``StatLogger.on_step`` told of step by step.
    ``max_num_generation_tokens`` are those of the longest completion.
    """

    request_id: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generation_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    n: int
    max_tokens: int | None
    e2e_latency: float
    time_to_first_token: float | None = None
    queue_time: float | None = None
    prefill_time: float | None = None
    decode_time: float | None = None
    inference_time: float | None = None
    inter_token_latencies: Sequence[float] = field(default=(), repr=False)
    max_num_generation_tokens: int = 0

    @property
    def mean_time_per_output_token(self) -> float | None:
        """Mean seconds between tokens; None with fewer than two tokens."""
        gaps = self.inter_token_latencies
        return sum(gaps) / len(gaps) if gaps else None


@dataclass(slots=True)
class StepTotals:
    """What the updates of a step brought, in numbers: those that ``StatLogger.on_step`` is told."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    times_to_first_token: list[float] = field(default_factory=list)
    inter_token_latencies: list[float] = field(default_factory=list)

    def add(self, other: "StepTotals") -> None:
        """Add those of another part of the same step."""
        self.num_prompt_tokens += other.num_prompt_tokens
        self.num_cached_tokens += other.num_cached_tokens
        self.num_generation_tokens += other.num_generation_tokens
        self.times_to_first_token.extend(other.times_to_first_token)
        self.inter_token_latencies.extend(other.inter_token_latencies)


class StatLogger(Protocol):
    """Somebody who is told what the engine does. Called in the event loop: must be quick."""

    def on_step(
        self,
        stats: SchedulerStats,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        *,
        num_cached_tokens: int = 0,
        times_to_first_token: Sequence[float] = (),
        inter_token_latencies: Sequence[float] = (),
    ) -> None:
        """A step of the engine is done. Times in seconds.

        Args:
            stats: scheduler and cache after the step.
            num_prompt_tokens: prompts that got their first token in this step; each prompt counts once, whatever ``n``.
            num_cached_tokens: tokens of those prompts that came from the prefix cache.
            num_generation_tokens: tokens for users; those after a stop string are cut before.
            times_to_first_token: one entry per request that got its first token.
            inter_token_latencies: one entry per token but the first of each completion.
        """
        ...

    def on_finished(self, request: RequestStats) -> None:
        """A request is done, for whatever reason."""
        ...
