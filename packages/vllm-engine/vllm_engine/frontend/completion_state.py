"""One completion while it is generated: its tokens, text and log-probabilities that have not been handed out yet."""

from vllm_engine.frontend.detokenizer import Detokenizer
from vllm_engine.frontend.logprobs import TokenText, read_position
from vllm_engine.messages import RequestUpdate
from vllm_engine.outputs import CompletionOutput, FinishReason, Logprob
from vllm_engine.params import OutputKind, SamplingParams


class CompletionState:
    """Takes the updates of one engine request and gives them out as ``CompletionOutput``."""

    __slots__ = (
        "_cumulative_logprob",
        "_detokenizer",
        "_error",
        "_include_stop",
        "_logprobs",
        "_num_given",
        "_stop_reason",
        "_text",
        "_token_ids",
        "_token_text",
        "engine_id",
        "finish_reason",
        "index",
        "last_token_ts",
        "num_cached_tokens",
        "num_preemptions",
        "num_tokens",
    )

    def __init__(
        self,
        engine_id: str,
        index: int,
        params: SamplingParams,
        detokenizer: Detokenizer | None,
        token_text: TokenText | None,
    ) -> None:
        self.engine_id = engine_id
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.last_token_ts = 0.0
        self._num_given = 0
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._include_stop = params.include_stop_str_in_output
        self._stop_reason: int | str | None = None
        self._error: str | None = None
        self._text = ""
        self._token_ids: list[int] = []
        with_logprobs = params.logprobs is not None
        self._logprobs: list[dict[int, Logprob]] | None = [] if with_logprobs else None
        self._cumulative_logprob: float | None = 0.0 if with_logprobs else None

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    def is_due(self, interval: int) -> bool:
        """Whether a stream gets its next part now: with the first token, then every ``interval`` ones, at the end."""
        given = self._num_given
        return self.finish_reason is not None or not given or self.num_tokens - given >= interval

    def update(self, update: RequestUpdate) -> int:
        """Take what a step brought. Returns the number of tokens that count: none of those after a stop string."""
        kept = self._take_text(update)
        new_ids = update.new_token_ids
        self._token_ids += new_ids if kept == len(new_ids) else new_ids[:kept]
        if self._logprobs is not None:
            for position in (update.logprobs or ())[:kept]:
                self._logprobs.append(read_position(position, self._token_text))
                self._cumulative_logprob = (self._cumulative_logprob or 0.0) + position.logprobs[0]
        self.num_tokens += kept
        if update.num_preemptions > self.num_preemptions:
            self.num_preemptions = update.num_preemptions
        if update.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = update.num_cached_tokens
        if self.finish_reason is None and update.finish_reason is not None:
            self._stop_reason = update.stop_reason
            self.finish(update.finish_reason, error=update.error)
        return kept

    def finish(self, reason: FinishReason, *, error: str | None = None) -> None:
        """End without a stop string: the rest of the text goes out, unless something broke."""
        if self._detokenizer is not None and reason != "error":
            self._text += self._detokenizer.finish()
        self.finish_reason = reason
        self._error = error

    def output(self, kind: OutputKind) -> CompletionOutput:
        """The completion so far, or what is new in it."""
        self._num_given = self.num_tokens
        text, token_ids, logprobs = self._text, self._token_ids, self._logprobs
        if kind is OutputKind.CUMULATIVE:
            token_ids = token_ids.copy()
            logprobs = None if logprobs is None else logprobs.copy()
        else:  # handed out once: what comes later goes into new lists
            self._text, self._token_ids = "", []
            self._logprobs = None if logprobs is None else []
        return CompletionOutput(
            self.index,
            text,
            token_ids,
            self._cumulative_logprob,
            logprobs,
            self.finish_reason,
            self._stop_reason,
            self._error,
        )

    def _take_text(self, update: RequestUpdate) -> int:
        """Decode the new tokens up to a stop string; returns how many of them are kept."""
        token_ids = update.new_token_ids
        detokenizer = self._detokenizer
        if detokenizer is None:
            return len(token_ids)
        shown = len(token_ids)
        if update.finish_reason == "stop" and not self._include_stop:
            shown -= 1  # the last token ended the completion: it counts as a token, but is no text
        for position in range(shown):
            text, stop = detokenizer.push(token_ids[position])
            self._text += text
            if stop is not None:
                self.finish_reason, self._stop_reason = "stop", stop
                return position + 1
        return len(token_ids)
