"""From prompts to outputs: one stream of outputs for all prompts of a request."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_engine.errors import RequestFailed
from vllm_engine.frontend.held_logprobs import Holding
from vllm_engine.frontend.prompts import Prompt
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import SamplingParams
from vllm_server.access.tenant import TokenMeter, current_tenant
from vllm_server.field_names import named_as_in_request
from vllm_server.telemetry.request_record import RequestRecord, current_record

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM


QUICK_LOGPROBS = 4096
"""It takes some milliseconds to write so many."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything the engine needs for one HTTP request. ``request_id`` is made by the server.

    ``field_names`` tells what the engine's fields are called in the request, for its error messages. ``on_accepted`` is
    called once the engine has taken a prompt: what can be wrong with the request has been found by then.
    """

    llm: "AsyncLLM"
    prompts: Sequence[Prompt]
    params: SamplingParams
    request_id: str
    priority: int = 0
    cache_salt: str | None = None
    field_names: Mapping[str, str] = field(default_factory=dict)
    on_accepted: Callable[[], None] | None = None

    async def outputs(self, holding: Holding | None = None) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs as they come, each with the index of its prompt. Closing this aborts what still runs.

        ``holding`` counts the log-probabilities of all of them, for who keeps them.

        Raises:
            InvalidRequest: before the first output, when a prompt or a value does not fit the model.
            RequestFailed: when the engine gave up on one of the prompts.
            RateLimited: when the key may not have another request.
            EngineDead, Overloaded: as the engine raises them.
        """
        record = current_record()
        record.response_id, record.params = self.request_id, self.params
        with named_as_in_request(self.field_names), current_tenant().request() as meter:
            if len(self.prompts) == 1:  # by far the most: each generator on the way costs all of their tokens
                async with aclosing(self._start(0, meter, holding)) as outputs:
                    async for output in outputs:
                        meter.count(0, output, self.params.output_kind)
                        self._note(record, 0, output)
                        yield 0, output
            else:
                async with aclosing(self._of_many(meter, holding)) as merged:
                    async for index, output in merged:
                        self._note(record, index, output)
                        yield index, output

    async def final_outputs(self) -> list[RequestOutput]:
        """The last output of each prompt, in the order of the prompts; for parameters with ``FINAL_ONLY``."""
        holding = self.llm.held_logprobs.hold()
        try:
            return await self._final_outputs(holding)
        finally:
            holding.clear()

    async def answer(self, write: Callable[[list[RequestOutput]], bytes]) -> bytes:
        """What ``write`` makes of ``final_outputs``: in a thread when it has many log-probabilities to write."""
        holding = self.llm.held_logprobs.hold()
        try:
            outputs = await self._final_outputs(holding)
            count = holding.count
            if count <= QUICK_LOGPROBS:
                return write(outputs)
            return await self.llm.in_renderer(lambda: write(outputs), size=count)
        finally:
            holding.clear()

    async def _final_outputs(self, holding: Holding) -> list[RequestOutput]:
        final: dict[int, RequestOutput] = {}
        async with aclosing(self.outputs(holding)) as outputs:
            async for index, output in outputs:
                final[index] = output
        if len(final) < len(self.prompts):
            raise RequestFailed("The engine ended this request without an answer.")
        return [final[index] for index in range(len(self.prompts))]

    def _start(self, index: int, meter: TokenMeter, holding: Holding | None) -> AsyncGenerator[RequestOutput, None]:
        record = current_record()

        def abandoned(rest: RequestOutput) -> None:
            """A client that goes away has had this computed all the same."""
            meter.count(index, rest, self.params.output_kind)
            record.take(index, rest, self.params.output_kind)

        prompt = self.prompts[index]
        request_id = self.request_id if len(self.prompts) == 1 else f"{self.request_id}-{index}"
        return self.llm.generate(
            prompt,
            self.params,
            request_id,
            priority=self.priority,
            cache_salt=self.cache_salt,
            tenant=current_tenant().name,
            on_accepted=self.on_accepted,
            on_abandoned=abandoned,
            holding=holding,
        )

    def _note(self, record: RequestRecord, index: int, output: RequestOutput) -> None:
        """Tell the record of an output. Raises ``RequestFailed`` for one of a prompt that the engine gave up on."""
        record.take(index, output, self.params.output_kind)
        for item in output.outputs:
            if item.finish_reason == "error":
                raise RequestFailed("The engine could not finish this request.")

    async def _of_many(
        self, meter: TokenMeter, holding: Holding | None
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """One task per prompt. The bounded queue lets the engine's side merge outputs while the client is slow."""
        queue: asyncio.Queue[tuple[int, RequestOutput] | BaseException | None] = asyncio.Queue(maxsize=16)

        async def pump(index: int) -> None:
            try:
                async with aclosing(self._start(index, meter, holding)) as outputs:
                    async for output in outputs:
                        meter.count(index, output, self.params.output_kind)
                        await queue.put((index, output))
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        tasks = [asyncio.create_task(pump(index)) for index in range(len(self.prompts))]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
