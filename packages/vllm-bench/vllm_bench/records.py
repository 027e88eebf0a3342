"""What was measured of one request: moments as they were read, nothing worked out."""

import itertools
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One request. Moments are seconds of ``time.perf_counter``, read in the client's process.

    Its own times count from ``start``, when it should have been sent: whatever the client is late by is in them.
    """

    arrival: float
    """When the workload wanted it: the schedule's moment; without a schedule, the begin of the run."""
    start: float
    """``arrival``, or the later moment when a place among ``--max-concurrency`` became free for it."""
    prompt_len: int | None = None
    """Tokens of the prompt by the workload's own count, if it has one."""
    num_inputs: int = 1
    """Sequences that the model reads for it."""
    sent: float = 0.0
    """Just before it was written, or a connection was opened for it."""
    text_times: list[float] = field(default_factory=list)
    """Arrival of each chunk of tokens, mostly with text; equal ones where several were read at once."""
    texts: list[str] = field(default_factory=list)
    """What each of them adds to the answer; an answer that is no stream has one without a moment."""
    unread: deque[tuple[float, bytes]] = field(default_factory=deque)
    """Pieces of the answer, each with its moment, that wait to be read: most of them are one chunk of tokens."""
    announced_tokens: int | None = field(default=None, compare=False)
    """``completion_tokens`` by the end of an answer that is not read yet, for whoever watches."""
    ended: float = 0.0
    """The end of the answer, or the moment of failure."""
    finished: bool = False
    """The server said that the answer is complete."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Token counts by the server's ``usage``; None when it reports none."""
    output_len: int | None = None
    """Most tokens of the answer that were asked for."""
    error: str | None = None
    """Why it failed; None when it is complete."""

    def add_chunk(self, now: float, text: str) -> None:
        """A chunk of tokens came at ``now``; ``text`` is its part of the answer, empty for thoughts and the like."""
        self.text_times.append(now)
        self.texts.append(text)

    @property
    def dispatch_lag(self) -> float:
        """Seconds that the client sent it late."""
        return self.sent - self.start

    @property
    def queue_seconds(self) -> float:
        """Seconds that it waited for a place among ``--max-concurrency``."""
        return self.start - self.arrival

    @property
    def ttft(self) -> float:
        """Seconds to the first chunk of tokens."""
        return self.text_times[0] - self.start

    @property
    def itls(self) -> list[float]:
        """Seconds between chunks of tokens, without the time to the first."""
        return [later - earlier for earlier, later in itertools.pairwise(self.text_times)]

    @property
    def latency(self) -> float:
        """Seconds to the end of the answer."""
        return self.ended - self.start

    @property
    def output_tokens(self) -> int:
        """Tokens by the server's usage, else the number of chunks."""
        return len(self.text_times) if self.completion_tokens is None else self.completion_tokens

    @property
    def tpot(self) -> float | None:
        """Mean seconds of a token after the first; None for an answer of less than two tokens."""
        if self.output_tokens < 2 or len(self.text_times) < 2:
            return None
        return (self.text_times[-1] - self.text_times[0]) / (self.output_tokens - 1)
