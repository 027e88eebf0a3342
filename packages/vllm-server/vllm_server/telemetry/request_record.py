"""One HTTP request while it is served: the receipt, the line in the log and the spans are three views of it."""

import time
from collections.abc import Iterable
from contextvars import ContextVar, Token
from itertools import accumulate, pairwise

from vllm_engine.outputs import RequestMetrics, RequestOutput
from vllm_engine.params import OutputKind
from vllm_server.protocol.receipt import Receipt

PHASES = ("preparation", "queue", "prefill", "decode", "delivery")
"""From the head of the request to its answer, each from the end of the one before."""


class PromptRecord:
    """What is known of one prompt and its completions."""

    __slots__ = ("finish_reasons", "metrics", "num_generated", "num_prompt_tokens")

    def __init__(self, num_prompt_tokens: int, metrics: RequestMetrics) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_generated = 0
        self.metrics = metrics
        self.finish_reasons: dict[int, str] = {}


class RequestRecord:
    """Made when the head of the request has come; whoever serves it adds what comes to be known."""

    def __init__(self) -> None:
        self.arrived = time.monotonic()
        self.arrived_at = time.time()
        self.response_id: str | None = None
        self.model: str | None = None
        self.num_completions = 0
        """Of each prompt."""
        self.prompts: dict[int, PromptRecord] = {}

    def take(self, index: int, output: RequestOutput, kind: OutputKind) -> None:
        """Take in an output of prompt ``index``, as it is on the way to the client."""
        prompt = self.prompts.get(index)
        if prompt is None:
            prompt = self.prompts[index] = PromptRecord(len(output.prompt_token_ids), output.metrics)
        prompt.metrics = output.metrics
        num_tokens = 0
        for completion in output.outputs:
            num_tokens += len(completion.token_ids)
            if completion.finish_reason is not None:
                prompt.finish_reasons[completion.index] = completion.finish_reason
        prompt.num_generated = num_tokens + (prompt.num_generated if kind is OutputKind.DELTA else 0)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(prompt.num_prompt_tokens for prompt in self.prompts.values())

    @property
    def num_generated(self) -> int:
        """Tokens of all completions."""
        return sum(prompt.num_generated for prompt in self.prompts.values())

    @property
    def num_cached(self) -> int:
        """Prompt tokens that came from the prefix cache, for all completions."""
        return sum(prompt.metrics.num_cached_tokens for prompt in self.prompts.values())

    @property
    def num_preemptions(self) -> int:
        """How often a completion had to give way."""
        return sum(prompt.metrics.num_preemptions for prompt in self.prompts.values())

    def moments(self, now: float) -> list[float]:
        """Begin of each of ``PHASES`` and the end of the last one, in monotonic seconds, ascending.

        A moment that has not come is like the one before, so that its phase takes no time.
        """
        metrics = [prompt.metrics for prompt in self.prompts.values()]
        known = [
            _first(one.submitted_ts for one in metrics),
            _first(one.scheduled_ts for one in metrics),
            _first(one.first_token_ts for one in metrics),
            max((one.last_token_ts for one in metrics), default=0.0),
        ]
        return list(accumulate((self.arrived, *(min(moment, now) for moment in known), now), max))

    def receipt(self, now: float | None = None) -> Receipt:
        """What the request took until ``now``, which is this moment if it is not given."""
        moments = self.moments(time.monotonic() if now is None else now)
        # Whole microseconds from the start on: so the phases add up to the total exactly.
        ticks = [round((moment - self.arrived) * 1e6) for moment in moments]
        times = [(end - begin) / 1e6 for begin, end in pairwise(ticks)]
        num_computed = self.num_completions * self.num_prompt_tokens - self.num_cached
        return Receipt(
            *times,
            ticks[-1] / 1e6,
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached,
            computed_tokens=num_computed,
            generated_tokens=self.num_generated,
            preemptions=self.num_preemptions,
        )


def _first(moments: Iterable[float]) -> float:
    return min((moment for moment in moments if moment), default=0.0)


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def current_record() -> RequestRecord:
    """The record of the request that is being served; one that nobody reads outside of the HTTP server."""
    record = _current.get(None)
    return RequestRecord() if record is None else record


def enter_record(record: RequestRecord) -> Token[RequestRecord]:
    """Make ``record`` the current one, until ``leave_record``."""
    return _current.set(record)


def leave_record(token: Token[RequestRecord]) -> None:
    """Give back what ``enter_record`` gave."""
    _current.reset(token)
