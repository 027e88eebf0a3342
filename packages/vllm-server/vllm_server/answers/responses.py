"""What ``/v1/responses`` answers: one object that grows, and the events that tell of it."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from vllm_engine.errors import InvalidRequest, Overloaded, RequestFailed
from vllm_engine.outputs import RequestOutput
from vllm_server.answers.event_stream import named_event
from vllm_server.answers.logprobs import TokenNames, chat_logprobs
from vllm_server.answers.receipts import ReceiptBook
from vllm_server.errors import error_body
from vllm_server.protocol.chat import TokenLogprob
from vllm_server.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    PartEvent,
    RawMessage,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    StateEvent,
    Status,
    TextDeltaEvent,
    TextDoneEvent,
)

_ITEM, _PART = 0, 0
"""Places of the one message in the output, and of the one text in it."""


class ResponseAnswer:
    """Fills in ``response``. Each method gives the events that tell of what it did, one block for each."""

    def __init__(
        self,
        response: ResponseObject,
        item_id: str,
        names: TokenNames,
        receipts: ReceiptBook,
        *,
        num_logprobs: int | None,
        prompt_text: str | None = None,
        dropped_messages: int = 0,
        with_events: bool = True,
    ) -> None:
        """``num_logprobs``: None for none; ``prompt_text`` where the response shows what the model read and wrote."""
        self.response = response
        self._with_events = with_events
        self._names = names
        self._receipts = receipts
        self._sealed: bytes | None = None
        self._num_logprobs = num_logprobs
        self._prompt_text = prompt_text
        self._dropped = dropped_messages
        self._part = OutputText("", logprobs=None if num_logprobs is None else [])
        self._item = OutputMessage(item_id, "in_progress", [self._part])
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._token_ids: list[int] = []
        self._last: RequestOutput | None = None
        self._finish_reason: str | None = None
        self._events: list[bytes] = []
        self._number = 0

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.response.status not in ("queued", "in_progress")

    @property
    def body(self) -> bytes:
        """The response as it is now: a complete one has its receipt, if that is wanted."""
        if self.response.status not in ("completed", "incomplete"):
            return msgspec.json.encode(self.response)
        if self._sealed is None:
            self._sealed = self._receipts.sealed(self.response)
        return self._sealed

    def queue(self) -> list[bytes]:
        """The engine has the request."""
        self.response.status = "queued"
        self._state("response.created")
        self._state("response.queued")
        return self._taken()

    def take(self, output: RequestOutput) -> list[bytes]:
        """Take in an output, whose texts and tokens are new."""
        if self._last is None:
            self._begin()
        self._last = output
        for item in output.outputs:
            logprobs = self._shown_logprobs(item.token_ids, item.logprobs)
            self._token_ids += item.token_ids
            self._finish_reason = item.finish_reason
            if item.text or logprobs:
                self._texts.append(item.text)
                self._logprobs += logprobs
                self._emit(TextDeltaEvent(self._next(), self._item.id, _ITEM, _PART, item.text, logprobs))
        return self._taken()

    def end(self) -> list[bytes]:
        """The last output has been taken in."""
        if self._last is None or self._finish_reason not in ("stop", "length"):
            return self.fail(RequestFailed("The engine ended this request without an answer."))
        if self._finish_reason == "length":
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
            return self._finish("incomplete")
        return self._finish("completed")

    def fail(self, error: Exception) -> list[bytes]:
        """The answer ends with an error; what there is of it stays."""
        self.response.error = ResponseError(_code(error), error_body(error).error.message)
        return self._finish("failed")

    def cancel(self) -> list[bytes]:
        """The answer ends because somebody wants no more of it; what there is of it stays."""
        return self._finish("cancelled")

    def _begin(self) -> None:
        if self.response.status != "queued":
            self._state("response.created")
        self.response.status = "in_progress"
        self._state("response.in_progress")
        self._emit(
            ItemEvent(
                "response.output_item.added", self._next(), _ITEM, msgspec.structs.replace(self._item, content=[])
            )
        )
        self._tell_part("response.content_part.added")

    def _finish(self, status: Status) -> list[bytes]:
        if self._last is not None:
            self._part.text = "".join(self._texts)
            if self._num_logprobs is not None:
                self._part.logprobs = self._logprobs
            self._item.status = "completed" if status == "completed" else "incomplete"
            self._emit(
                TextDoneEvent(self._next(), self._item.id, _ITEM, _PART, self._part.text, self._part.logprobs or [])
            )
            self._tell_part("response.content_part.done")
            self._emit(ItemEvent("response.output_item.done", self._next(), _ITEM, self._item))
            self._fill(self._last)
        self.response.status = status
        if status == "completed":
            self.response.completed_at = int(time.time())
        self._state(f"response.{status}")
        return self._taken()

    def _fill(self, last: RequestOutput) -> None:
        response = self.response
        response.output = [self._item]
        num_input, num_output = len(last.prompt_token_ids), len(self._token_ids)
        details = InputTokensDetails(last.num_cached_tokens)
        if self._dropped:
            details.dropped_messages = self._dropped
        response.usage = ResponseUsage(num_input, details, num_output, OutputTokensDetails(), num_input + num_output)
        if self._prompt_text is not None:
            response.input_messages = [RawMessage(self._prompt_text, list(last.prompt_token_ids))]
            response.output_messages = [RawMessage(self._part.text, self._token_ids)]

    def _shown_logprobs(self, token_ids: Sequence[int], positions: Any) -> list[TokenLogprob]:
        if self._num_logprobs is None or not positions:
            return []
        return chat_logprobs(token_ids, positions, self._names, num_top=self._num_logprobs).content

    def _state(self, kind: str) -> None:
        if self._with_events:
            self._emit(StateEvent(kind, self._next(), msgspec.Raw(self.body)))

    def _tell_part(self, kind: str) -> None:
        self._emit(PartEvent(kind, self._next(), self._item.id, _ITEM, _PART, self._part))

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _emit(self, event: StateEvent | ItemEvent | PartEvent | TextDeltaEvent | TextDoneEvent) -> None:
        if not self._with_events:
            return
        name = event.type if isinstance(event, StateEvent | ItemEvent | PartEvent) else event.__struct_config__.tag
        self._events.append(named_event(str(name), event))

    def _taken(self) -> list[bytes]:
        events, self._events = self._events, []
        return events


def _code(error: Exception) -> Any:
    if isinstance(error, Overloaded):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
