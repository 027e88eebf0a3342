"""When tokens wait for those of the next step."""

import asyncio
import time
from typing import Any

import pytest

from vllm_engine.core.clients.output_inbox import OutputInbox
from vllm_engine.frontend.pacing import LONGEST_WAIT, WINDOW_SECONDS, Pacing


class Loop:
    """Steps of some seconds, of which the event loop computes a share."""

    def __init__(self) -> None:
        self.now = self.computed = 0.0
        self.pacing = Pacing(lambda: self.now, lambda: self.computed)

    def run(self, seconds: float, *, step: float, share: float) -> float:
        patience = 0.0
        for _ in range(round(seconds / step)):
            self.now += step
            self.computed += share * step
            patience = self.pacing.patience(self.now)
        return patience


def test_tokens_wait_where_the_loop_computes_much_of_the_time_and_until_that_is_over() -> None:
    loop = Loop()
    assert loop.run(1, step=0.004, share=0.3) == 0
    assert loop.run(1, step=0.004, share=0.5) == pytest.approx(0.008)
    assert loop.run(1, step=0.004, share=0.3) == pytest.approx(0.008)  # as it is in pairs
    assert loop.run(1, step=0.004, share=0.15) == 0
    assert loop.run(1, step=0.004, share=0.3) == 0


def test_it_takes_a_moment_to_notice_and_an_idle_time_is_no_load() -> None:
    loop = Loop()
    assert loop.run(WINDOW_SECONDS / 2, step=0.002, share=1) == 0
    loop.now += 10
    assert loop.run(0.002, step=0.002, share=1) == 0


def test_slow_steps_wait_for_nobody() -> None:
    loop = Loop()
    assert loop.run(2, step=0.6 * LONGEST_WAIT, share=0.9) == 0
    assert loop.run(2, step=0.4 * LONGEST_WAIT, share=0.9) > 0


async def test_an_inbox_is_waited_on_without_taking_and_for_a_time() -> None:
    inbox, step = OutputInbox(), object()
    begun = time.monotonic()
    await inbox.wait(0.02)
    assert time.monotonic() - begun >= 0.015 and inbox.empty()
    waiting = asyncio.ensure_future(inbox.wait(30))
    await asyncio.sleep(0)
    put(inbox, step)
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(inbox.wait(30), 1)
    assert await inbox.get() is step and inbox.empty()


async def test_a_wait_that_is_given_up_loses_nothing() -> None:
    inbox, step = OutputInbox(), object()
    waiting = asyncio.ensure_future(inbox.wait(30))
    await asyncio.sleep(0)
    waiting.cancel()
    put(inbox, step)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await inbox.get() is step


def put(inbox: OutputInbox, step: Any) -> None:
    inbox.put_nowait(step)
