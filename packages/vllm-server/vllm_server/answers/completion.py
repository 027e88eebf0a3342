"""What ``/v1/completions`` answers, whole or as a stream of chunks."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from vllm_engine.errors import Unsupported
from vllm_engine.outputs import CompletionOutput, RequestOutput
from vllm_engine.params import SamplingParams
from vllm_server.answers.event_stream import event
from vllm_server.answers.generation import Generation
from vllm_server.answers.logprobs import Position, completion_logprobs, prompt_logprobs, token_names
from vllm_server.answers.receipts import ReceiptBook
from vllm_server.answers.token_counts import TokenCounts
from vllm_server.config import ServerConfig
from vllm_server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest

if TYPE_CHECKING:
    from vllm_engine.frontend.tokenizer import Tokenizer


class CompletionAnswer:
    """Builds the answer to one request. Choice ``i`` of prompt ``p`` has the index ``p * n + i``.

    ``config`` tells what answers hold.
    """

    def __init__(
        self,
        request: CompletionRequest,
        params: SamplingParams,
        prompts: Sequence[str | list[int]],
        response_id: str,
        model: str,
        tokenizer: "Tokenizer | None",
        config: ServerConfig,
        receipts: ReceiptBook,
    ) -> None:
        self._request = request
        self._params = params
        self._prompts = prompts
        self._id = response_id
        self._model = model
        self._tokenizer = tokenizer
        self._created = int(time.time())
        self._names = token_names(request, tokenizer, config)
        self._details = config.enable_prompt_tokens_details
        self._force_usage = config.enable_force_include_usage
        self._receipts = receipts
        self._drop_output = request.max_tokens == 0
        if request.echo and tokenizer is None:
            raise Unsupported("this server has no tokenizer and cannot echo a prompt", field="echo")

    def whole(self, outputs: Sequence[RequestOutput]) -> Completion:
        """The response. ``outputs``: the final output of each prompt."""
        counts = TokenCounts()
        choices = []
        for prompt_index, output in enumerate(outputs):
            counts.add(prompt_index, output, count_completion=not self._drop_output)
            for item in sorted(output.outputs, key=lambda item: item.index):
                choices.append(self._choice(prompt_index, output, item, offset=0, first=True))
        return Completion(self._id, self._created, self._model, choices, counts.usage(details=self._details))

    async def blocks(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The events of a stream: one chunk for each choice of each output, and the usage if that is asked for."""
        options = self._request.stream_options
        with_usage = self._force_usage or bool(options and options.include_usage)
        usage_each_time = bool(options and options.continuous_usage_stats)
        counts = TokenCounts()
        lengths: dict[int, int] = {}
        async with aclosing(generation.outputs()) as outputs:
            async for prompt_index, output in outputs:
                counts.add(prompt_index, output, count_completion=not self._drop_output)
                block = []
                for item in output.outputs:
                    index = prompt_index * self._params.n + item.index
                    first = index not in lengths
                    choice = self._choice(prompt_index, output, item, offset=lengths.get(index, 0), first=first)
                    lengths[index] = lengths.get(index, 0) + len(choice.text)
                    usage = counts.usage() if usage_each_time else None if with_usage else UNSET
                    block.append(event(Completion(self._id, self._created, self._model, [choice], usage)))
                if block:
                    yield b"".join(block)
        if with_usage or self._receipts.is_wanted:
            usage = counts.usage(details=self._details) if with_usage else UNSET
            last = Completion(self._id, self._created, self._model, [], usage)
            last.receipt = self._receipts.receipt()
            yield event(last)

    def _choice(
        self, prompt_index: int, output: RequestOutput, item: CompletionOutput, *, offset: int, first: bool
    ) -> CompletionChoice:
        """``first``: nothing of this choice was sent before; ``offset``: characters that were."""
        text, token_ids, positions = item.text, item.token_ids, item.logprobs
        if self._drop_output:
            text, token_ids, positions = "", [], []
        shown: CompletionLogprobs | None = None
        if self._request.logprobs is not None:
            all_positions: list[Position] = list(positions or ())
            all_ids = token_ids if positions else []
            if self._request.echo and first:
                all_positions = [*(output.prompt_logprobs or ()), *all_positions]
                all_ids = [*(output.prompt_token_ids if output.prompt_logprobs else ()), *all_ids]
            shown = completion_logprobs(all_ids, all_positions, self._names, offset=offset)
        if self._request.echo and first:
            text = self._prompt_text(prompt_index, output) + text
        asked_for_ids = self._request.return_token_ids
        return CompletionChoice(
            prompt_index * self._params.n + item.index,
            text,
            shown,
            item.finish_reason,
            item.stop_reason,
            self._prompt_logprobs(output),
            list(token_ids) if asked_for_ids else UNSET,
            output.prompt_token_ids if asked_for_ids and first and not self._request.prompt_embeds else UNSET,
        )

    def _prompt_logprobs(self, output: RequestOutput) -> list[dict[int, dict[str, object]] | None] | UnsetType:
        if self._request.prompt_logprobs is None or output.prompt_logprobs is None:
            return UNSET
        return prompt_logprobs(output.prompt_logprobs)

    def _prompt_text(self, prompt_index: int, output: RequestOutput) -> str:
        """As the client wrote it, or the text of the tokens that the model really saw."""
        prompt = self._prompts[prompt_index]
        if isinstance(prompt, str) and self._params.truncate_prompt_tokens is None:
            return prompt
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(output.prompt_token_ids, skip_special_tokens=self._params.skip_special_tokens)
