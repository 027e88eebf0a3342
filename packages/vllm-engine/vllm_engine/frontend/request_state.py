"""One request of a user while it runs: its completions, their moments in time, and the outputs made of them."""

import time

from vllm_engine.errors import InvalidRequest, Overloaded
from vllm_engine.frontend.completion_state import CompletionState
from vllm_engine.frontend.detokenizer import Detokenizer
from vllm_engine.frontend.held_logprobs import Holding
from vllm_engine.frontend.input_processor import PreparedRequest
from vllm_engine.frontend.logprobs import TokenText, read_position
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.messages import PositionLogprobs, RequestUpdate
from vllm_engine.metrics.stats import RequestStats, StepTotals
from vllm_engine.outputs import Logprob, RequestMetrics, RequestOutput
from vllm_engine.params import OutputKind


class RequestState:
    """Merges the ``n`` completions of a request into ``RequestOutput`` after ``RequestOutput``."""

    def __init__(
        self,
        prepared: PreparedRequest,
        tokenizer: Tokenizer | None,
        *,
        kind: OutputKind,
        stream_interval: int = 1,
        holding: Holding | None = None,
    ) -> None:
        """``stream_interval``: new tokens of a completion until a stream gets its next part. ``holding`` counts the
        log-probabilities that come; whoever takes them counts them out.
        """
        params = prepared.params
        detokenize = tokenizer if params.detokenize else None
        self._token_text: TokenText | None = None if detokenize is None else detokenize.token_text
        self.request_id = prepared.request_id
        self.kind = kind
        self._stream_interval = stream_interval
        context = [] if detokenize is None else _context(prepared, detokenize)
        self.completions = [
            CompletionState(
                request.request_id,
                index,
                params,
                None if detokenize is None else Detokenizer.for_request(detokenize, context, params),
                self._token_text,
            )
            for index, request in enumerate(prepared.requests)
        ]
        self.metrics = RequestMetrics(
            arrival_time=prepared.arrival_time, queued_ts=prepared.queued_ts, submitted_ts=time.monotonic()
        )
        self.inter_token_latencies: list[float] = []
        self._prepared = prepared
        self._num_open = len(self.completions)
        self._num_cached_tokens = 0
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._touched: dict[int, CompletionState] = {}
        self._holding = holding
        self.refusal: InvalidRequest | Overloaded | None = None
        """Why there is no answer, though the request was taken."""

    @property
    def finished(self) -> bool:
        """Whether all completions are over."""
        return self._num_open == 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._prepared.prompt_token_ids)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that came from the prefix cache, for the first completion."""
        return self._num_cached_tokens

    def update(self, completion: CompletionState, update: RequestUpdate, timestamp: float, totals: StepTotals) -> None:
        """Take what a step brought for one completion, and count it in ``totals``.

        ``timestamp`` is the moment of the step, monotonic seconds.
        """
        metrics = self.metrics
        if update.scheduled_ts and not metrics.scheduled_ts:
            metrics.scheduled_ts = update.scheduled_ts
        if self._holding is not None:
            if update.prompt_logprobs is not None:
                self._holding.add(_count_of(update.prompt_logprobs), "prompt_logprobs")
            if update.logprobs is not None:
                self._holding.add(_count_of(update.logprobs))
        if update.prompt_logprobs is not None:
            self._prompt_logprobs = [None, *self._read_prompt(update.prompt_logprobs)]
        if update.num_cached_tokens > completion.num_cached_tokens:
            metrics.num_cached_tokens += update.num_cached_tokens - completion.num_cached_tokens
            if completion.index == 0:
                self._num_cached_tokens = update.num_cached_tokens
        if update.num_preemptions > completion.num_preemptions:
            metrics.num_preemptions += update.num_preemptions - completion.num_preemptions
        kept = completion.update(update)
        self._touched[completion.index] = completion
        if completion.finish_reason is not None:
            self._num_open -= 1
        if kept:
            self._count(completion, kept, timestamp, totals)

    def finish_open(self, reason: str) -> list[str]:
        """End every completion that is not over yet as aborted or failed; returns their engine ids."""
        ended = []
        for completion in self.completions:
            if not completion.finished:
                completion.finish(
                    "abort" if reason == "abort" else "error", error=None if reason == "abort" else reason
                )
                self._touched[completion.index] = completion
                ended.append(completion.engine_id)
        self._num_open = 0
        return ended

    def output(self) -> RequestOutput | None:
        """The next output; None when this kind has nothing to tell yet."""
        finished = self._num_open == 0
        if self.kind is OutputKind.FINAL_ONLY and not finished:
            return None
        touched = self._touched
        due = [completion for completion in touched.values() if completion.is_due(self._stream_interval)]
        if not due and not finished:
            return None
        if len(due) == len(touched):
            touched.clear()
        else:
            for completion in due:
                del touched[completion.index]
        if len(due) > 1:
            due.sort(key=_index)
        chosen = due if self.kind is OutputKind.DELTA else self.completions
        prompt_logprobs = self._prompt_logprobs
        if self.kind is OutputKind.DELTA:
            self._prompt_logprobs = None
        return RequestOutput(
            self.request_id,
            self._prepared.prompt,
            self._prepared.prompt_token_ids,
            [completion.output(self.kind) for completion in chosen],
            finished,
            prompt_logprobs,
            self._num_cached_tokens,
            self.metrics,
        )

    def stats(self, now: float) -> RequestStats:
        """The finished request in numbers; ``now`` in monotonic seconds."""
        metrics = self.metrics
        first = metrics.first_token_ts or None
        scheduled = metrics.scheduled_ts or None
        reasons = [completion.finish_reason for completion in self.completions]
        return RequestStats(
            request_id=self.request_id,
            finish_reason="error" if "error" in reasons else reasons[0] or "abort",
            num_prompt_tokens=self.num_prompt_tokens,
            num_generation_tokens=sum(completion.num_tokens for completion in self.completions),
            max_num_generation_tokens=max(completion.num_tokens for completion in self.completions),
            num_cached_tokens=self._num_cached_tokens,
            num_preemptions=metrics.num_preemptions,
            n=len(self.completions),
            max_tokens=self._prepared.params.max_tokens,
            e2e_latency=_span(metrics.queued_ts, now) or 0.0,
            time_to_first_token=_span(metrics.queued_ts, first),
            queue_time=_span(metrics.queued_ts, scheduled),
            prefill_time=_span(scheduled, first),
            decode_time=_span(first, metrics.last_token_ts),
            inference_time=_span(scheduled, metrics.last_token_ts or None),
            inter_token_latencies=self.inter_token_latencies,
        )

    def _read_prompt(self, positions: list[PositionLogprobs]) -> list[dict[int, Logprob]]:
        return [read_position(position, self._token_text) for position in positions]

    def _count(self, completion: CompletionState, kept: int, timestamp: float, totals: StepTotals) -> None:
        """Note when ``kept`` new tokens came."""
        metrics = self.metrics
        totals.num_generation_tokens += kept
        if not metrics.first_token_ts:
            metrics.first_token_ts = timestamp
            totals.num_prompt_tokens += self.num_prompt_tokens
            totals.num_cached_tokens += self._num_cached_tokens
            totals.times_to_first_token.append(max(0.0, timestamp - metrics.queued_ts))
        # Tokens of one step arrive together: each of them took its share of the time since the step before.
        before = completion.last_token_ts
        gaps = [max(0.0, timestamp - before) / kept] * kept if before else [0.0] * (kept - 1)
        completion.last_token_ts = metrics.last_token_ts = timestamp
        self.inter_token_latencies += gaps
        totals.inter_token_latencies += gaps


def _context(prepared: PreparedRequest, tokenizer: Tokenizer) -> list[int]:
    """The tokens that the output follows. After embeddings, any word stands for the text that nobody knows: without
    one, decoders that drop the space at the beginning of a text would drop that of the first output token.
    """
    if any(request.prompt_embeds is not None for request in prepared.requests):
        return tokenizer.encode("a", add_special_tokens=False)
    return prepared.prompt_token_ids


def _count_of(logprobs: list[PositionLogprobs]) -> int:
    return sum(len(at.token_ids) for at in logprobs)


def _index(completion: CompletionState) -> int:
    return completion.index


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)
