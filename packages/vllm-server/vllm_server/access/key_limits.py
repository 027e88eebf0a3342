"""What one API key may do at a time: so many requests at once, so many tokens a minute."""

import time
from collections import Counter
from collections.abc import Callable

from vllm_server.errors import RateLimited

MINUTE = 60.0
_SWEEP_FROM = 64


class KeyLimits:
    """Running requests and token buckets of the keys that are in use. Keys go by their digests.

    A key's bucket holds the tokens of a minute, and fills evenly. A request is taken while the bucket is not empty, and
    its tokens, of prompt and answer, are taken out as they come: so a bucket may be overdrawn by what runs, and what
    was overdrawn has to flow in before the next request. Full buckets are forgotten.
    """

    def __init__(
        self, max_concurrency: int = 0, tokens_per_minute: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A limit of 0 is none."""
        self._max_concurrency = max_concurrency
        self._tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens missing from a full one, and when
        self._sweep_at = _SWEEP_FROM

    @property
    def num_known(self) -> int:
        """Keys of which anything is kept."""
        return len(self._running.keys() | self._buckets.keys())

    def enter(self, key: str) -> None:
        """A request of ``key`` begins. Raises ``RateLimited`` when it may not."""
        if self._max_concurrency and self._running[key] >= self._max_concurrency:
            raise RateLimited(
                f"This key has {self._running[key]} requests that run or wait, and may have no more at once."
            )
        if self._tokens_per_minute and (missing := self._missing(key)) >= self._tokens_per_minute:
            flow = self._tokens_per_minute / MINUTE
            raise RateLimited(
                f"This key has used up its {self._tokens_per_minute} tokens a minute.",
                retry_after=(missing - self._tokens_per_minute) / flow + 1,
            )
        self._running[key] += 1

    def leave(self, key: str) -> None:
        """A request of ``key`` has ended."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def charge(self, key: str, tokens: int) -> None:
        """Take tokens out of the bucket of ``key``."""
        if not self._tokens_per_minute:
            return
        self._buckets[key] = (self._missing(key) + tokens, self._clock())
        if len(self._buckets) > self._sweep_at:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if self._missing(name) > 0}
            self._sweep_at = 2 * len(self._buckets) + _SWEEP_FROM

    def _missing(self, key: str) -> float:
        missing, since = self._buckets.get(key, (0.0, 0.0))
        return max(0.0, missing - (self._clock() - since) * self._tokens_per_minute / MINUTE)
