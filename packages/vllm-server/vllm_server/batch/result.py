"""One line of the output of a batch. The format is that of OpenAI's batch API."""

import uuid
from dataclasses import dataclass

import msgspec

from vllm_server.batch.app import Answer
from vllm_server.context import new_id
from vllm_server.errors import ErrorDetail, error_body, http_status


class BatchResponse(msgspec.Struct):
    """The answer of a route: its status, the label of the request, and its JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchResult(msgspec.Struct):
    """One line of the output. ``error`` repeats the error of a body that has one, so that failures are easy to find."""

    id: str
    custom_id: str | None
    response: BatchResponse
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class WrittenResult:
    """A result as bytes, with the end of its line, and what is counted of it."""

    line: bytes
    failed: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Usage(msgspec.Struct):
    """The counts under either of the names that APIs give them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Told(msgspec.Struct):
    """What a route's answer says of itself, whatever else is in it."""

    error: ErrorDetail | None = None
    usage: _Usage | None = None


def answered(custom_id: str, answer: Answer) -> WrittenResult:
    """The result of a request that its route has answered.

    Raises:
        msgspec.DecodeError: for an answer that is not JSON, or no object.
    """
    told = msgspec.json.decode(answer.body, type=_Told)
    body = answer.body
    if b"\n" in body:  # between the tokens of JSON, where it means nothing; here it would end the line
        body = msgspec.json.encode(msgspec.json.decode(body))
    response = BatchResponse(answer.status, answer.request_id, msgspec.Raw(body))
    error = None
    if answer.status >= 400:
        error = told.error or ErrorDetail(f"the route answered {answer.status}", "server_error")
    usage = told.usage or _Usage()
    result = BatchResult(new_id("vllm"), custom_id, response, error)
    prompt_tokens = usage.prompt_tokens or usage.input_tokens or 0
    return _written(result, prompt_tokens, usage.completion_tokens or usage.output_tokens or 0)


def refused(custom_id: str | None, number: int, reason: Exception) -> WrittenResult:
    """The result of line ``number``, which has no answer of a route, in the shape of a route's own refusal."""
    body = error_body(reason)
    body.error.message = f"line {number}: {body.error.message}"
    response = BatchResponse(http_status(reason), uuid.uuid4().hex, msgspec.Raw(msgspec.json.encode(body)))
    return _written(BatchResult(new_id("vllm"), custom_id, response, body.error))


def _written(result: BatchResult, prompt_tokens: int = 0, completion_tokens: int = 0) -> WrittenResult:
    line = msgspec.json.encode(result) + b"\n"
    return WrittenResult(line, result.error is not None, prompt_tokens, completion_tokens)
