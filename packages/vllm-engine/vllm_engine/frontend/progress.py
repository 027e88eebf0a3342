"""The progress bar of ``LLM.generate``."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from vllm_engine.outputs import RequestOutput


class Bar(Protocol):
    """A bar that is on the screen."""

    def advance(self, output: RequestOutput) -> None:
        """One more request is done."""
        ...


class Progress(Protocol):
    """Makes bars."""

    def of(self, total: int) -> contextlib.AbstractContextManager[Bar]:
        """A bar for so many requests, on the screen while the context lasts."""
        ...


class NoProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def of(self, total: int) -> Iterator[Bar]:
        """A bar that nobody sees."""
        yield self

    def advance(self, output: RequestOutput) -> None:
        """Nothing to show."""


class TqdmProgress:
    """A ``tqdm`` bar: requests done, and tokens per second of prompts and outputs."""

    def __init__(self, factory: Callable[..., Any] | None = None) -> None:
        """``factory`` takes what ``tqdm`` takes; None is ``tqdm`` itself."""
        self._factory = factory

    @contextlib.contextmanager
    def of(self, total: int) -> Iterator[Bar]:
        """A bar for so many requests."""
        factory = self._factory
        if factory is None:
            from tqdm.auto import tqdm

            factory = tqdm
        bar = factory(total=total, desc="Prompts", unit="req", dynamic_ncols=True)
        try:
            yield _TqdmBar(bar)
        finally:
            bar.close()


class _TqdmBar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._start = time.perf_counter()
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    def advance(self, output: RequestOutput) -> None:
        self._num_prompt_tokens += len(output.prompt_token_ids)
        self._num_output_tokens += sum(len(completion.token_ids) for completion in output.outputs)
        seconds = max(time.perf_counter() - self._start, 1e-6)
        self._bar.set_postfix_str(
            f"in {self._num_prompt_tokens / seconds:.1f} tok/s, out {self._num_output_tokens / seconds:.1f} tok/s",
            refresh=False,
        )
        self._bar.update(1)
