"""Threads by the size of a step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from vllm_engine.execution.thread_binding import on_a_core_each

LONG_STEP_WORK = 2**28
"""Bytes of a layer's weights times tokens, which in bf16 is FLOP, from where on a step is worth all threads."""


class StepThreads:
    """All threads for long steps of a model so small that one is enough otherwise.

    A token of each sequence is computed sooner by one thread where layers are small (``num_threads``), and the other
    cores are free for the frontend. Prompts are work for all of them.

    Args:
        usual: threads of a step with few tokens.
        most: threads that there may be. There is nothing between one and these: a team of another size would end the
            one before.
        layer_bytes: weights of a layer.
        apart: keep all threads on cores of their own in long steps, see ``on_a_core_each``.
    """

    def __init__(self, usual: int, most: int, layer_bytes: int, *, apart: bool = False) -> None:
        self._apart = apart
        self._usual = usual
        self._most = most if usual == 1 else usual
        self._long = -(-LONG_STEP_WORK // max(1, layer_bytes))

    @contextmanager
    def computing(self, num_tokens: int) -> Iterator[None]:
        """While a step of so many tokens is computed."""
        if num_tokens < self._long or self._most == self._usual:
            yield
            return
        torch.set_num_threads(self._most)
        try:
            with on_a_core_each(self._most) if self._apart else nullcontext():
                yield
        finally:
            torch.set_num_threads(self._usual)
