"""``SamplingState``: all that sampling remembers of one request. It belongs to the request, never to a batch row."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_engine.messages import EngineRequest
from vllm_engine.sampling.processors import LogitsProcessor
from vllm_engine.sampling.request_processors import RequestProcessors


class SamplingState:
    """What one request's next token depends on, besides its logits.

    Args:
        request: the request.
        token_ids: its prompt and any output so far (after a preemption). Read now, not kept.
        processors: the engine's logits processors of the user's own.
    """

    def __init__(
        self, request: EngineRequest, token_ids: list[int], processors: Sequence[LogitsProcessor] = ()
    ) -> None:
        params = request.params
        self.request = request
        self.params = params
        self.num_outputs = len(token_ids) - len(request.prompt_token_ids)
        if self.num_outputs < 0:
            raise ValueError(f"token_ids must hold the prompt ({len(request.prompt_token_ids)}), got {len(token_ids)}")
        self.counts: TokenCounts | None = None
        if params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0:
            # Without a repetition penalty, the prompt does not matter.
            prompt = request.known_prompt if params.repetition_penalty != 1 else []
            self.counts = TokenCounts(prompt, token_ids[len(request.prompt_token_ids) :])
        self.bad_words: BadWords | None = None
        if request.bad_words_token_ids:
            if request.prompt_embeds is not None:
                token_ids = token_ids[len(request.prompt_token_ids) :]  # those before are placeholders
            self.bad_words = BadWords(request.bad_words_token_ids, token_ids)
        self.processors: RequestProcessors | None = None
        if processors:
            outputs = token_ids[len(token_ids) - self.num_outputs :]
            self.processors = RequestProcessors(processors, request, outputs) or None
        self._checked_for: int | None = None
        self._outside: str | None = None

    def fault(self, vocab_size: int) -> str | None:
        """Why the request cannot be sampled from ``vocab_size`` logits; None if it can."""
        if self._checked_for != vocab_size:  # once: the list of states changes far more often than a request's fields
            self._checked_for = vocab_size
            try:
                check_token_ids(self.request, vocab_size)
            except ValueError as error:
                self._outside = str(error)
            else:
                self._outside = None
        if self._outside is not None or self.processors is None:
            return self._outside
        return self.processors.error

    def append(self, token_id: int) -> None:
        """Take note of a new output token."""
        self.num_outputs += 1
        if self.counts is not None:
            self.counts.add(token_id)
        if self.bad_words is not None:
            self.bad_words.append(token_id)
        if self.processors is not None:
            self.processors.append(token_id)


class TokenCounts:
    """The distinct tokens of prompt and output, and how often each is in the output, as one growing array."""

    def __init__(self, prompt: list[int], output: list[int]) -> None:
        distinct = list(dict.fromkeys(prompt))
        self._entries = np.zeros((max(64, 2 * len(distinct)), 2), dtype=np.int32)
        # Cut down to 32 bits where a faulty request has more: such a one is refused by check_token_ids.
        self._entries[: len(distinct), 0] = np.array(distinct, dtype=np.int64)
        self._index = {token_id: place for place, token_id in enumerate(distinct)}
        for token_id in output:
            self.add(token_id)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, token_id: int) -> None:
        """Count one more output token."""
        place = self._index.get(token_id)
        if place is None:
            place = self._index[token_id] = len(self._index)
            if place == len(self._entries):
                self._entries = np.concatenate([self._entries, np.zeros_like(self._entries)])
            self._entries[place, 0] = token_id
        self._entries[place, 1] += 1

    @property
    def entries(self) -> NDArray[np.int32]:
        """``[len(self), 2]``: a token, in the order of their first coming, and its count; 0 for the prompt alone."""
        return self._entries[: len(self._index)]


class BadWords:
    """Token sequences that must not come up: the last token of each is forbidden where the others stand before it.

    What stands before is looked for in prompt and output together, so that a word cannot straddle the two either.
    """

    def __init__(self, sequences: list[list[int]], token_ids: list[int]) -> None:
        self._always = [sequence[0] for sequence in sequences if len(sequence) == 1]
        # Last token of a prefix -> (prefix, forbidden token): most steps end at one look into this dict.
        self._after: dict[int, list[tuple[list[int], int]]] = {}
        for sequence in sequences:
            if len(sequence) > 1:
                self._after.setdefault(sequence[-2], []).append((sequence[:-1], sequence[-1]))
        self._longest = max((len(sequence) for sequence in sequences), default=1) - 1
        self._tail = list(token_ids[-self._longest :]) if self._longest else []

    def append(self, token_id: int) -> None:
        """Take note of a new output token."""
        if self._longest:
            self._tail.append(token_id)
            del self._tail[: -self._longest]

    def forbidden(self) -> Iterable[int]:
        """Tokens that may not come next."""
        if not self._tail:
            return self._always
        completing = [
            last for prefix, last in self._after.get(self._tail[-1], ()) if self._tail[-len(prefix) :] == prefix
        ]
        return self._always + completing if completing else self._always


def check_token_ids(request: EngineRequest, vocab_size: int) -> None:
    """Make sure that sampling indexes inside the vocabulary. The frontend has checked it; this is the second lock.

    Raises:
        ValueError: names the field with an id outside ``[0, vocab_size)``, or an empty bad word.
    """
    params = request.params
    if not all(request.bad_words_token_ids):
        raise ValueError("bad_words has a word without tokens")
    penalised = request.known_prompt if params.repetition_penalty != 1 else []
    for name, token_ids in (
        ("allowed_token_ids", params.allowed_token_ids or []),
        ("logit_bias", params.logit_bias or []),
        ("stop_token_ids", request.stop_token_ids),
        ("bad_words", [token_id for word in request.bad_words_token_ids for token_id in word]),
        ("prompt", penalised),
    ):
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
            raise ValueError(f"{name} has a token id outside the vocabulary of {vocab_size} tokens")
