"""The way from the engine's output task to one consumer. A slow consumer finds all that is new in one output."""

import asyncio

from vllm_engine.outputs import CompletionOutput, RequestOutput
from vllm_engine.params import OutputKind


class OutputQueue:
    """Holds at most one output, so that its size is bounded by the request's own, however slow the consumer is.

    There is one consumer. It waits on a future of its own: an ``asyncio.Event`` would take as long for each token as
    decoding it does.
    """

    __slots__ = ("_error", "_kind", "_output", "_waiter")

    def __init__(self, kind: OutputKind) -> None:
        self._kind = kind
        self._output: RequestOutput | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        """Add an output: merged with one that waits (``DELTA``), or in its place."""
        if self._output is not None and self._kind is OutputKind.DELTA:
            merge_delta(self._output, output)
        else:
            self._output = output
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise an error in the consumer, after what waits."""
        self._error = error
        self._wake()

    async def get(self) -> RequestOutput:
        """The next output. Raises the error of ``fail``."""
        while self._output is None:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        output, self._output = self._output, None
        return output

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> RequestOutput | None:
        """What waits, if anything does: for when nobody will call ``get`` again."""
        output, self._output = self._output, None
        return output


def merge_delta(older: RequestOutput, newer: RequestOutput) -> None:
    """Put the news of ``newer`` behind those of ``older``, in place. Costs what is new in ``newer``, and its text."""
    known = {completion.index: completion for completion in older.outputs}
    for completion in newer.outputs:
        if completion.index in known:
            _append(known[completion.index], completion)
        else:
            older.outputs.append(completion)
    older.outputs.sort(key=lambda completion: completion.index)
    older.finished = newer.finished
    older.num_cached_tokens = newer.num_cached_tokens
    older.metrics = newer.metrics
    if newer.prompt_logprobs is not None:
        older.prompt_logprobs = newer.prompt_logprobs


def _append(older: CompletionOutput, newer: CompletionOutput) -> None:
    older.text += newer.text
    older.token_ids.extend(newer.token_ids)
    if older.logprobs is not None and newer.logprobs is not None:
        older.logprobs.extend(newer.logprobs)
    older.cumulative_logprob = newer.cumulative_logprob
    older.finish_reason = newer.finish_reason
    older.stop_reason = newer.stop_reason
    older.error = newer.error
