"""The loop around the core uses the time in which there is nothing else to do, a piece at a time."""

from types import SimpleNamespace
from typing import Any

from vllm_engine.core.loop import run_core
from vllm_engine.messages import Ping, Shutdown


def test_what_can_wait_is_done_between_messages_and_the_loop_sleeps_when_all_is_done() -> None:
    did: list[str] = []
    left = ["one", "two", "three"]
    messages = {1: Ping()}  # comes when one piece is done

    class Core(SimpleNamespace):
        has_idle_work = property(lambda self: bool(left))

        def has_unfinished(self) -> bool:
            return False

        def use_idle_time(self) -> None:
            did.append(left.pop(0))

    def receive(*, block: bool) -> Any:
        if block:
            did.append("sleeps")
            return Shutdown()
        return messages.pop(len(did), None)

    run_core(Core(), receive, lambda message: did.append(type(message).__name__))  # type: ignore[arg-type]
    assert did == ["one", "Pong", "two", "three", "sleeps"]
