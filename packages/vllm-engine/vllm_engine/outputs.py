"""What a request gives back to the user of the engine."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability, its rank in the vocabulary (1 = most likely) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` completions of a prompt.

    ``logprobs`` has one dict per token of ``token_ids``: token id -> ``Logprob`` of the chosen token and of the
    most likely ones. ``stop_reason`` is the stop string or stop token id that ended the text, None for the
    end-of-sequence token or any other reason. ``error`` tells what went wrong when ``finish_reason`` is ``error``.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether this completion is over."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Moments of one request, in seconds of ``time.time()`` for ``arrival_time``, of ``time.monotonic()`` otherwise.

    A moment that has not come is 0. ``queued_ts`` is when the engine was asked, ``submitted_ts`` when the prompt was
    tokenized and given to the core; ``scheduled_ts`` belongs to the first of the ``n`` completions that was computed.
    The two numbers are sums over all completions: each has prompt tokens of its own that came from the prefix cache.
    """

    arrival_time: float = 0.0
    queued_ts: float = 0.0
    submitted_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_preemptions: int = 0
    num_cached_tokens: int = 0


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: all of its completions, or what is new in them (``OutputKind``).

    ``prompt_logprobs`` has one entry per prompt token; the first is None, as nothing precedes it.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
