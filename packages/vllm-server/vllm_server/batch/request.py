"""One line of the input of a batch, and what it asks for. The format is that of OpenAI's batch API."""

from collections.abc import Collection
from typing import TypeVar

import msgspec

from vllm_engine.errors import InvalidRequest

T = TypeVar("T")


class BatchRequest(msgspec.Struct):
    """A request as its line has it; ``body`` is JSON that the route has yet to read."""

    custom_id: str
    url: str
    body: bytes


class _Streamed(msgspec.Struct):
    stream: bool | None = None


def parse_line(line: bytes, urls: Collection[str]) -> BatchRequest:
    """The request of a line; ``urls`` are the routes that it may name.

    The body is checked by its route, save that it is an object and asks for no stream.

    Raises:
        InvalidRequest: naming the field at fault.
    """
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise InvalidRequest("the line must be a JSON object") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the line is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the line is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the JSON of the line is nested too deeply") from None
    custom_id = _field(fields, "custom_id", str, "a text")
    method = _field(fields, "method", str, "POST")
    if method != "POST":
        raise InvalidRequest(f"method must be POST, got {method[:80]!r}", field="method")
    url = _field(fields, "url", str, f"one of {', '.join(urls)}")
    if url not in urls:
        raise InvalidRequest(f"url must be one of {', '.join(urls)}, got {url[:80]!r}", field="url")
    _field(fields, "body", dict[str, msgspec.Raw], "a JSON object")
    body = bytes(fields["body"])
    try:
        streamed = msgspec.json.decode(body, type=_Streamed).stream
    except (msgspec.DecodeError, UnicodeDecodeError):
        streamed = None  # the route will say what is wrong
    if streamed:
        raise InvalidRequest("stream must be false: an answer of a batch comes whole", field="stream")
    return BatchRequest(custom_id, url, body)


def custom_id_of(line: bytes | None) -> str | None:
    """The ``custom_id`` of a line that may be wrong elsewhere, or too long to be held: then None, or without any."""
    if line is None:
        return None
    try:
        return _field(msgspec.json.decode(line, type=dict[str, msgspec.Raw]), "custom_id", str, "a text")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest):
        return None


def _field(fields: dict[str, msgspec.Raw], name: str, kind: type[T], meaning: str) -> T:
    if name not in fields:
        raise InvalidRequest(f"{name} is missing", field=name)
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(f"{name} must be {meaning}", field=name) from None
