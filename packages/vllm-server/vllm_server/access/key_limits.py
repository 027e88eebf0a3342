"""What one API key may do at a time: so many requests at once, so many tokens a minute."""

import time
from collections.abc import Callable

from vllm_engine.frontend.tally import LocalTally, Tally
from vllm_server.errors import RateLimited

MINUTE = 60.0
_SWEEP_FROM = 64


class KeyLimits:
    """Running requests and token buckets of the keys that are in use. Keys go by their digests.

    A key's bucket holds the tokens of a minute, and fills evenly. A request is taken while the bucket is not empty, and
    its tokens, of prompt and answer, are taken out as they come: so a bucket may be overdrawn by what runs, and what
    was overdrawn has to flow in before the next request. Full buckets are forgotten.

    Where several processes serve the same keys, each has such buckets, and takes out of them what the others tell that
    they have charged: at each request of a key, and for all keys by ``take_in``, which wants to be called about once a
    second, as what comes late cannot flow in meanwhile.
    """

    def __init__(
        self,
        max_concurrency: int = 0,
        tokens_per_minute: int = 0,
        *,
        running: Tally | None = None,
        charged: Tally | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A limit of 0 is none.

        Args:
            max_concurrency: most running requests of a key.
            tokens_per_minute: tokens of a key.
            running: counts the requests of all processes; None: of this one.
            charged: counts the tokens of all processes since their beginning; None where there is but this one.
            clock: seconds.
        """
        self._max_concurrency = max_concurrency
        self._tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._running: Tally = LocalTally() if running is None else running
        self._charged = charged
        # What others had charged before cannot be told in time.
        self._known = {} if charged is None else {key: charged.of(key) for key in charged.holders()}
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens missing from a full one, and when
        self._sweep_at = _SWEEP_FROM

    @property
    def counts_tokens(self) -> bool:
        """Whether ``charge`` does anything."""
        return self._tokens_per_minute > 0

    @property
    def num_known(self) -> int:
        """Keys of which anything is kept."""
        return len(self._running.holders() | self._buckets.keys())

    def enter(self, key: str) -> None:
        """A request of ``key`` begins. Raises ``RateLimited`` when it may not."""
        if self._max_concurrency and self._running.of(key) >= self._max_concurrency:
            raise RateLimited(
                f"This key has {self._running.of(key)} requests that run or wait, and may have no more at once."
            )
        self._take_in(key)
        if self._tokens_per_minute and (missing := self._missing(key)) >= self._tokens_per_minute:
            flow = self._tokens_per_minute / MINUTE
            raise RateLimited(
                f"This key has used up its {self._tokens_per_minute} tokens a minute.",
                retry_after=(missing - self._tokens_per_minute) / flow + 1,
            )
        self._running.add(key, 1)

    def leave(self, key: str) -> None:
        """A request of ``key`` has ended."""
        self._running.add(key, -1)

    def charge(self, key: str, tokens: int) -> None:
        """Take tokens out of the bucket of ``key``."""
        if not self._tokens_per_minute:
            return
        if self._charged is not None:
            self._charged.add(key, tokens)
            self._take_in(key)
        else:
            self._take_out(key, tokens)

    def take_in(self) -> None:
        """Take out of the buckets what other processes have charged."""
        if self._charged is not None and self._tokens_per_minute:
            for key in self._charged.holders():
                self._take_in(key)

    def _take_in(self, key: str) -> None:
        if self._charged is None or not self._tokens_per_minute:
            return
        charged = self._charged.of(key)
        if tokens := charged - self._known.get(key, 0):
            self._known[key] = charged
            self._take_out(key, tokens)

    def _take_out(self, key: str, tokens: int) -> None:
        self._buckets[key] = (self._missing(key) + tokens, self._clock())
        if len(self._buckets) > self._sweep_at:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if self._missing(name) > 0}
            self._sweep_at = 2 * len(self._buckets) + _SWEEP_FROM

    def _missing(self, key: str) -> float:
        missing, since = self._buckets.get(key, (0.0, 0.0))
        return max(0.0, missing - (self._clock() - since) * self._tokens_per_minute / MINUTE)
