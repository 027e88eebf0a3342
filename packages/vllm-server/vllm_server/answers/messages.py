"""What ``/v1/messages`` answers, whole or as a stream of events."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from vllm_engine.outputs import CompletionOutput, RequestOutput
from vllm_server.answers.event_stream import named_event
from vllm_server.answers.generation import Generation
from vllm_server.answers.receipts import ReceiptBook
from vllm_server.protocol.messages import (
    AnswerText,
    AnthropicMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessagesUsage,
    Ping,
    StreamEvent,
    TextDelta,
)


def tagged_event(value: msgspec.Struct) -> bytes:
    """An event whose name is the tag of ``value``, as all of this API's are."""
    return named_event(str(value.__struct_config__.tag), value)


class MessageAnswer:
    """Builds the answer to one request.

    ``stop_sequences`` are those of the request; ``details``: usage tells what came out of the prefix cache.
    """

    def __init__(
        self, response_id: str, model: str, stop_sequences: Sequence[str], receipts: ReceiptBook, *, details: bool
    ) -> None:
        self._id = response_id
        self._model = model
        self._stop_sequences = frozenset(stop_sequences)
        self._receipts = receipts
        self._details = details

    def whole(self, output: RequestOutput) -> AnthropicMessage:
        """The answer, from the final output, before it gets its receipt."""
        (item,) = output.outputs
        ending = self._ending(item)
        return AnthropicMessage(
            self._id,
            self._model,
            [AnswerText(item.text)] if item.text else [],
            self._usage(output, len(item.token_ids)),
            ending.stop_reason,
            ending.stop_sequence,
        )

    async def blocks(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The events of a stream. The one block of content begins with the first text."""
        output_tokens = 0
        begun = in_block = False
        async with aclosing(generation.outputs()) as outputs:
            async for _, output in outputs:
                events: list[StreamEvent] = []
                if not begun:
                    begun = True
                    events.append(MessageStart(AnthropicMessage(self._id, self._model, [], self._usage(output, 0))))
                for item in output.outputs:
                    output_tokens += len(item.token_ids)
                    if item.text and not in_block:
                        in_block = True
                        events += [BlockStart(0, AnswerText("")), Ping()]
                    if item.text:
                        events.append(BlockDelta(0, TextDelta(item.text)))
                    if item.finished:
                        if in_block:
                            events.append(BlockStop(0))
                        events.append(MessageDelta(self._ending(item), self._usage(output, output_tokens)))
                if events:
                    yield b"".join(map(tagged_event, events))
        yield tagged_event(MessageStop(self._receipts.receipt()))

    def _ending(self, item: CompletionOutput) -> Ending:
        if item.finish_reason == "length":
            return Ending("max_tokens", None)
        # What the operator has set for all requests ends a turn; only the request's own sequences are told of.
        if isinstance(item.stop_reason, str) and item.stop_reason in self._stop_sequences:
            return Ending("stop_sequence", item.stop_reason)
        return Ending("end_turn", None)

    def _usage(self, output: RequestOutput, output_tokens: int) -> MessagesUsage:
        prompt_tokens, cached = len(output.prompt_token_ids), output.num_cached_tokens
        if not self._details:
            return MessagesUsage(prompt_tokens, output_tokens)
        return MessagesUsage(prompt_tokens - cached, output_tokens, 0, cached)
