"""Threads by the size of a step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from vllm_engine.execution.thread_binding import on_a_core_each
from vllm_kernels.cpu import native

LONG_STEP_WORK = 2**28
"""Bytes of a layer's weights times tokens, which in bf16 is FLOP, from where on a step is worth all threads."""
FRONTEND_SECONDS = 1.1e-3
"""What a new request costs a frontend: taking it in, and its answer's begin and end."""
PROMPT_RATES = {"amx": 4e11, "avx512_bf16": 2.5e11, "avx512": 1e11, "avx2": 1e11}
"""FLOP a second of one core in prompts of small models, by the native kernels' level; without them half the lowest."""

_beside_frontend = False


def compute_beside_frontend() -> None:
    """Tell that the requests of this process are another's on the same machine, which wants a core, too."""
    global _beside_frontend
    _beside_frontend = True


class StepThreads:
    """All threads for long steps of a model so small that one is enough otherwise.

    A token of each sequence is computed sooner by one thread where layers are small (``num_threads``), and the other
    cores are free for the frontend. Prompts are work for all of them; unless they are so short that the frontend beside
    this process is at work on as many requests for as long: threads that take turns with it on a core hold each other
    up more than they compute.

    Args:
        usual: threads of a step with few tokens.
        most: threads that there may be. There is nothing between one and these: a team of another size would end the
            one before.
        layer_bytes: weights of a layer.
        num_layers: how many there are.
        apart: keep all threads on cores of their own in long steps, see ``on_a_core_each``.
    """

    def __init__(self, usual: int, most: int, layer_bytes: int, num_layers: int, *, apart: bool = False) -> None:
        self._apart = apart
        self._usual = usual
        self._most = most if usual == 1 else usual
        self._long = -(-LONG_STEP_WORK // max(1, layer_bytes))
        self._token_seconds = layer_bytes * num_layers / _prompt_rate()

    @contextmanager
    def computing(self, num_tokens: int, num_new_requests: int) -> Iterator[None]:
        """While a step of so many tokens is computed, which begins so many requests."""
        if num_tokens < self._long or self._most == self._usual or self._frontend_is_busy(num_tokens, num_new_requests):
            yield
            return
        torch.set_num_threads(self._most)
        try:
            with on_a_core_each(self._most) if self._apart else nullcontext():
                yield
        finally:
            torch.set_num_threads(self._usual)

    def _frontend_is_busy(self, num_tokens: int, num_new_requests: int) -> bool:
        """Whether so many requests keep a frontend busy for as long as their tokens keep a thread."""
        return _beside_frontend and num_tokens * self._token_seconds < num_new_requests * FRONTEND_SECONDS


def _prompt_rate() -> float:
    if native.why_not():
        return PROMPT_RATES["avx2"] / 2
    return PROMPT_RATES[native.level()]
