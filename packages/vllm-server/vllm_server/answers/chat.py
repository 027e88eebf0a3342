"""What ``/v1/chat/completions`` answers, whole or as a stream of chunks."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import UNSET

from vllm_engine.outputs import CompletionOutput, RequestOutput
from vllm_server.answers.event_stream import event
from vllm_server.answers.generation import Generation
from vllm_server.answers.logprobs import chat_logprobs, prompt_logprobs, token_names
from vllm_server.answers.receipts import ReceiptBook
from vllm_server.answers.token_counts import TokenCounts
from vllm_server.config import ServerConfig
from vllm_server.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Delta,
)

if TYPE_CHECKING:
    from vllm_engine.frontend.tokenizer import Tokenizer


class ChatAnswer:
    """Builds the answer to one request.

    ``role`` is who speaks in it; ``config`` tells what answers hold; ``echo`` stands before the text of each choice.
    """

    def __init__(
        self,
        request: ChatRequest,
        response_id: str,
        model: str,
        role: str,
        tokenizer: "Tokenizer | None",
        config: ServerConfig,
        receipts: ReceiptBook,
        echo: str = "",
    ) -> None:
        self._echo = echo
        self._request = request
        self._id = response_id
        self._model = model
        self._role = role
        self._created = int(time.time())
        self._names = token_names(request, tokenizer, config)
        self._details = config.enable_prompt_tokens_details
        self._force_usage = config.enable_force_include_usage
        self._receipts = receipts

    def whole(self, output: RequestOutput) -> ChatCompletion:
        """The response, from the final output."""
        counts = TokenCounts()
        counts.add(0, output)
        choices = [
            ChatChoice(
                item.index,
                AnswerMessage(self._role, self._echo + item.text),
                self._logprobs(item),
                item.finish_reason,
                item.stop_reason,
                item.token_ids if self._request.return_token_ids else UNSET,
            )
            for item in sorted(output.outputs, key=lambda item: item.index)
        ]
        answer = ChatCompletion(self._id, self._created, self._model, choices, counts.usage(details=self._details))
        if self._request.return_token_ids:
            answer.prompt_token_ids = output.prompt_token_ids
        if self._request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return answer

    async def blocks(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The events of a stream: who speaks, then one chunk for each choice of each output, then the usage."""
        options = self._request.stream_options
        with_usage = self._force_usage or bool(options and options.include_usage)
        usage_each_time = bool(options and options.continuous_usage_stats)
        counts = TokenCounts()
        begun: set[int] = set()
        async with aclosing(generation.outputs()) as outputs:
            async for _, output in outputs:
                counts.add(0, output)
                usage = counts.usage() if usage_each_time else None if with_usage else UNSET
                block = []
                for item in output.outputs:
                    if item.index not in begun:
                        choice = ChatChunkChoice(item.index, Delta(self._role, self._echo), None, None)
                        chunk = ChatChunk(self._id, self._created, self._model, [choice], usage)
                        if self._request.return_token_ids and not begun:
                            chunk.prompt_token_ids = output.prompt_token_ids
                        begun.add(item.index)
                        block.append(event(chunk))
                    block.append(
                        event(ChatChunk(self._id, self._created, self._model, [self._chunk_choice(item)], usage))
                    )
                if block:
                    yield b"".join(block)
        if with_usage or self._receipts.is_wanted:
            usage = counts.usage(details=self._details) if with_usage else UNSET
            last = ChatChunk(self._id, self._created, self._model, [], usage)
            last.receipt = self._receipts.receipt()
            yield event(last)

    def _chunk_choice(self, item: CompletionOutput) -> ChatChunkChoice:
        return ChatChunkChoice(
            item.index,
            Delta(content=item.text),
            self._logprobs(item),
            item.finish_reason,
            item.stop_reason if item.finished else UNSET,
            item.token_ids if self._request.return_token_ids else UNSET,
        )

    def _logprobs(self, item: CompletionOutput) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        positions = item.logprobs or []
        return chat_logprobs(
            item.token_ids if positions else [],
            positions,
            self._names,
            num_top=self._request.top_logprobs or 0,
        )
