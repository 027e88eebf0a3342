"""One HTTP request while it is served: the receipt, the line in the log and the spans are three views of it."""

import asyncio
import time
from collections.abc import Iterable
from contextvars import ContextVar, Token
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any, Protocol

import msgspec

from vllm_engine.outputs import RequestMetrics, RequestOutput
from vllm_engine.params import OutputKind, SamplingParams
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
    """Made when the head of the request has come; whoever serves it adds what comes to be known.

    ``listener`` hears of the outputs. ``label`` is the one of the answer's ``X-Request-Id``, ``route`` the path of the
    route that served it, with the names of its parameters. ``status`` is None while no answer has begun, ``complete``
    tells whether all of it went out, and ``error`` is what went wrong. ``content_length`` is what the request's head
    says of its body, 0 for nothing, and ``num_bytes`` the size of the answer's body as far as it went out.
    """

    def __init__(self, method: str = "", *, listener: "OutputListener | None" = None) -> None:
        self.method = method
        self.arrived = time.monotonic()
        self.arrived_at = time.time()
        self.ended: float | None = None
        self.label: str | None = None
        self.route: str | None = None
        self.status: int | None = None
        self.complete = False
        self.content_length = 0
        self.num_bytes = 0
        self.error: Exception | None = None
        self.stack: TracebackType | None = None
        self.work: asyncio.Future[None] | None = None
        """What goes on when the answer is out: a response that is made in the background."""
        self.response_id: str | None = None
        self.span: Any = None
        """Of OpenTelemetry, where traces are sent."""
        self.trace_response: bytes | None = None
        """The header of the answer that names the span."""
        self.params: SamplingParams | None = None
        self.prompts: dict[int, PromptRecord] = {}
        self._listener = listener
        self._kept: dict[tuple[int, int], tuple[list[str], list[int]]] = {}

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
        if self._listener is not None:
            self._listener.on_output(self, index, output, kind)

    def fail(self, error: Exception) -> None:
        """Remember what went wrong, and where: whoever raises an error again may take its stack away."""
        self.error, self.stack = error, error.__traceback__

    def keep_output(self, index: int, number: int, text: str, token_ids: list[int]) -> None:
        """Remember what is new of completion ``number`` of prompt ``index``."""
        texts, ids = self._kept.setdefault((index, number), ([], []))
        texts.append(text)
        ids.extend(token_ids)

    def kept_outputs(self) -> dict[tuple[int, int], tuple[str, list[int]]]:
        """All that ``keep_output`` was told, by prompt and completion."""
        return {place: ("".join(texts), ids) for place, (texts, ids) in sorted(self._kept.items())}

    @property
    def finish_reasons(self) -> set[str]:
        """Of all completions that have ended."""
        return {reason for prompt in self.prompts.values() for reason in prompt.finish_reasons.values()}

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
        preparation, queue, prefill, decode, delivery = ((end - begin) / 1e6 for begin, end in pairwise(ticks))
        num_completions = 1 if self.params is None else self.params.n
        num_computed = num_completions * self.num_prompt_tokens - self.num_cached
        return Receipt(
            preparation_time=preparation,
            queue_time=queue,
            prefill_time=prefill,
            decode_time=decode,
            delivery_time=delivery,
            total_time=ticks[-1] / 1e6,
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached,
            computed_tokens=num_computed,
            generated_tokens=self.num_generated,
            preemptions=self.num_preemptions,
        )

    def facts(self) -> dict[str, str | int | float | bool]:
        """What the log tells of the request: nothing that stands in its prompt or its headers but its label."""
        ended = time.monotonic() if self.ended is None else self.ended
        facts: dict[str, str | int | float | bool | None] = {
            "request_id": self.label,
            "response_id": self.response_id,
            "method": self.method,
            "route": self.route or "unknown",
            "status": self.status,
            "complete": self.complete,
            "error": None if self.error is None else type(self.error).__name__,
            "total_time": round(ended - self.arrived, 6),
        }
        if self.prompts:
            reasons = "+".join(sorted(self.finish_reasons))
            facts |= {"finish_reason": reasons or None, **msgspec.structs.asdict(self.receipt(ended))}
        return {name: value for name, value in facts.items() if value is not None}


class OutputListener(Protocol):
    """Somebody who hears of what is generated."""

    def on_output(self, record: RequestRecord, index: int, output: RequestOutput, kind: OutputKind) -> None:
        """An output of prompt ``index`` is on its way to the client."""
        ...


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
