"""What a slow consumer finds."""

import asyncio

import pytest

from vllm_engine.frontend.output_queue import OutputQueue
from vllm_engine.outputs import CompletionOutput, Logprob, RequestOutput
from vllm_engine.params import OutputKind


def output(*completions: CompletionOutput, finished: bool = False) -> RequestOutput:
    return RequestOutput("r", None, [1], list(completions), finished)


def delta(index: int, text: str, token: int, reason: str | None = None) -> CompletionOutput:
    return CompletionOutput(index, text, [token], -1.0 * token, [{token: Logprob(-1.0)}], reason)  # type: ignore[arg-type]


async def test_deltas_that_nobody_took_are_merged_in_order() -> None:
    queue = OutputQueue(OutputKind.DELTA)
    queue.put(output(delta(1, "a", 1)))
    queue.put(output(delta(0, "x", 2), delta(1, "b", 3)))
    queue.put(output(delta(1, "c", 4, "stop"), finished=True))
    merged = await queue.get()
    assert merged.finished
    assert [(c.index, c.text, c.token_ids, c.finish_reason) for c in merged.outputs] == [
        (0, "x", [2], None),
        (1, "abc", [1, 3, 4], "stop"),
    ]
    assert [list(entry) for entry in merged.outputs[1].logprobs or []] == [[1], [3], [4]]
    assert merged.outputs[1].cumulative_logprob == -4.0


async def test_prompt_logprobs_of_a_first_delta_are_not_lost() -> None:
    queue = OutputQueue(OutputKind.DELTA)
    first = output(delta(0, "a", 1))
    first.prompt_logprobs = [None]
    queue.put(first)
    queue.put(output(delta(0, "b", 2)))
    assert (await queue.get()).prompt_logprobs == [None]


async def test_of_cumulative_outputs_the_newest_stands_for_all() -> None:
    queue = OutputQueue(OutputKind.CUMULATIVE)
    for text in ("a", "ab", "abc"):
        queue.put(output(delta(0, text, 1)))
    assert (await queue.get()).outputs[0].text == "abc"


async def test_an_error_comes_after_what_waits() -> None:
    queue = OutputQueue(OutputKind.DELTA)
    queue.put(output(delta(0, "a", 1)))
    queue.fail(ValueError("gone"))
    assert (await queue.get()).outputs[0].text == "a"
    for _ in range(2):
        with pytest.raises(ValueError, match="gone"):
            await queue.get()


async def test_a_consumer_wakes_up_for_an_output_and_for_an_error() -> None:
    queue = OutputQueue(OutputKind.DELTA)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.put(output(delta(0, "a", 1)))
    assert (await waiting).outputs[0].text == "a"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.fail(ValueError("gone"))
    with pytest.raises(ValueError, match="gone"):
        await waiting
