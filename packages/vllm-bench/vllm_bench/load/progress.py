"""How a run is going, while it goes: a bar on a terminal, else a line now and then."""

import asyncio
import shutil
import sys
import time
from collections import deque
from typing import TextIO

from vllm_bench.load.run import LoadRun
from vllm_bench.records import RequestRecord

_BAR_SECONDS = 0.25
_LINE_SECONDS = 10.0
_RATE_SECONDS = 3.0
_BAR_WIDTH = 20


class Progress:
    """Shows requests done, under way and failed, and the rates of the last seconds.

    Args:
        total: requests of the run; None when ``seconds`` ends it.
        seconds: how long new requests are sent.
        stream: where it is shown; standard error by default.
        interval: seconds between two looks; by default a quarter on a terminal, else ten.
    """

    def __init__(
        self, total: int | None, seconds: float | None, stream: TextIO | None = None, interval: float | None = None
    ) -> None:
        self._total = total
        self._seconds = seconds
        self._stream = sys.stderr if stream is None else stream
        self._on_terminal = self._stream.isatty()
        self._interval = interval or (_BAR_SECONDS if self._on_terminal else _LINE_SECONDS)

    async def follow(self, run: LoadRun) -> None:
        """Show ``run`` until this is cancelled."""
        counts = _Counts(run)
        try:
            while True:
                await asyncio.sleep(self._interval)
                self._show(counts)
        finally:
            if self._on_terminal:
                self._show(counts)
                self._write("\n")

    def _show(self, counts: "_Counts") -> None:
        counts.update(time.perf_counter())
        line = self.line(counts)
        if self._on_terminal:
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\033[K")
        else:
            self._write(line + "\n")

    def line(self, counts: "_Counts") -> str:
        """What is shown of ``counts``."""
        ended = counts.done + counts.failed
        share = (
            ended / self._total if self._total else min(1.0, counts.seconds / self._seconds) if self._seconds else 0.0
        )
        of = f" of {self._total}" if self._total else ""
        failed = f", {counts.failed} failed" if counts.failed else ""
        head = f"{share:4.0%} "
        if self._on_terminal:
            filled = round(share * _BAR_WIDTH)
            head += f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] "
        left = f", {counts.seconds * (1 - share) / share:.0f} s to go" if 0 < share < 1 else ""
        return (
            f"{head}{ended}{of} requests, {counts.under_way} under way{failed}; now {counts.request_rate:.1f} req/s, "
            f"{counts.token_rate:.0f} tok/s; {counts.seconds:.0f} s{left}"
        )

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._write = lambda text: None  # type: ignore[method-assign]  # nobody looks any more


class _Counts:
    """Sums of a run so far. Each look costs as much as there is under way, however long the run."""

    def __init__(self, run: LoadRun) -> None:
        self._run = run
        self._seen = 0
        self._open: dict[int, tuple[RequestRecord, int]] = {}
        self._history: deque[tuple[float, int, int]] = deque()
        self.done = self.failed = self.tokens = 0
        self.seconds = self.request_rate = self.token_rate = 0.0

    @property
    def under_way(self) -> int:
        return len(self._open)

    def update(self, now: float) -> None:
        """Look at the run at ``now``."""
        for record in self._run.records[self._seen :]:
            self._open[id(record)] = (record, 0)
        self._seen = len(self._run.records)
        for key, (record, counted) in list(self._open.items()):
            tokens = _tokens(record)
            self.tokens += tokens - counted
            if record.ended:
                del self._open[key]
                self.done += record.error is None
                self.failed += record.error is not None
            else:
                self._open[key] = (record, tokens)
        self._history.append((now, self.done, self.tokens))
        while len(self._history) > 2 and self._history[1][0] <= now - _RATE_SECONDS:
            self._history.popleft()
        self.seconds = now - self._run.began
        then, done, tokens = self._history[0] if len(self._history) > 1 else (self._run.began, 0, 0)
        span = max(now - then, 1e-9)
        self.request_rate, self.token_rate = (self.done - done) / span, (self.tokens - tokens) / span


def _tokens(record: RequestRecord) -> int:
    """Output tokens so far, as well as they are known: of what is not read yet, each piece is taken for one."""
    if record.ended and record.error is None:
        if record.completion_tokens is not None:
            return record.completion_tokens
        if record.announced_tokens is not None:
            return record.announced_tokens
    return len(record.text_times) + len(record.unread)
