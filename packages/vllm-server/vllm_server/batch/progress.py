"""How far a batch is: a bar on a terminal, and a line in the log now and then where there is none."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from vllm_engine.logging import get_logger
from vllm_server.batch.result import WrittenResult

logger = get_logger(__name__)

LOG_SECONDS = 10.0
"""How often a line is logged, where there is no terminal."""


class BatchProgress:
    """Counts the answers of this run; the rates are those since it began."""

    def __init__(self, *, total: int, done: int, failed: int) -> None:
        """``done`` of ``total`` lines, of which ``failed`` with an error, have an answer from earlier runs."""
        self._total = total
        self._before = done
        self._failed = failed
        self._answered = self._prompt_tokens = self._completion_tokens = 0
        self._started = self._told = time.monotonic()
        shown = sys.stderr.isatty()
        self._bar: tqdm[None] | None = (
            tqdm(total=total, initial=done, desc="Requests", unit="request", dynamic_ncols=True) if shown else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def count(self, result: WrittenResult) -> None:
        """Count an answer, and show it if it is time."""
        self._answered += 1
        self._failed += result.failed
        self._prompt_tokens += result.prompt_tokens
        self._completion_tokens += result.completion_tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._told >= LOG_SECONDS:
            self._told = time.monotonic()
            logger.info("%s", self._line())

    def _line(self) -> str:
        done = self._before + self._answered
        rate = self._answered / self._seconds
        return (
            f"{done} of {self._total} requests ({done / self._total:.1%}), {rate:.1f} requests/s, {self._rates()}, "
            f"about {(self._total - done) / rate:.0f} s left"
        )

    def _rates(self) -> str:
        prompt, completion = self._prompt_tokens / self._seconds, self._completion_tokens / self._seconds
        return f"{prompt:.0f} prompt tokens/s, {completion:.0f} new tokens/s, {self._failed} failed"

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)
