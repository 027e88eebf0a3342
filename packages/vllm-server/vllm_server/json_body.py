"""From the bytes of a request to a typed object; every mistake on the way becomes a 400 that names its field."""

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from vllm_engine.errors import InvalidRequest, Overloaded
from vllm_server.errors import PayloadTooLarge, UnsupportedMediaType

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 2**20
MAX_BYTES_BEING_READ = 2**30
"""Of all bodies whose end has not come: some hundred clients that send slowly would fill the memory with them.
Where no room is left, each may still have an even share of this: a few who send no end do not lock out all others."""
MAX_CONTAINERS = 1_000_000
"""Lists and objects in a body, brackets within its texts included: each takes up to thirty times the memory of its
bytes, and time of the event loop to make and to collect."""
MAX_EXPONENTS = 50_000
MAX_LARGE_EXPONENTS = 2000
"""Numbers such as 1e23, and such as 1e307: to find the nearest float may take 3 us for one of the former, and 30 us for
one of the latter, so that each megabyte of them would hold up everybody for seconds."""
_SHAPE = bytes.maketrans(b"0123456789E-+,]} \t\r\n", b"0000000000e++,,,,,,,")
_LARGE_EXPONENTS = (b"0e000,", b"0e+000,", b"0e0000", b"0e+0000")
_EXPONENTS = (b"0e00,", b"0e+00,")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_ITEM = re.compile(r"(?P<name>\w+)(?:\[[^\]]*\])+")  # an item of a list or mapping in the request itself
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")


class _Reading:
    """The bodies that are being read."""

    num_bodies = 0
    num_bytes = 0


async def read_json_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: as soon as more than ``limit`` bytes are announced or have come.
        Overloaded: when there is no room beside the bodies of others.
        UnsupportedMediaType: when the body is declared to be something else than JSON.
        starlette.requests.ClientDisconnect: when the client goes away while sending.
    """
    declared = request.headers.get("content-type")
    if declared is not None and not _is_json(declared):
        raise UnsupportedMediaType("The body must be JSON: send the header 'Content-Type: application/json'.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    _Reading.num_bodies += 1
    try:
        async for chunk in request.stream():
            body += chunk
            _Reading.num_bytes += len(chunk)
            if len(body) > limit:
                raise _too_large(limit)
            if min(_Reading.num_bytes, len(body) * _Reading.num_bodies) > MAX_BYTES_BEING_READ:
                raise Overloaded("So many large requests are being read that there is no room for another one.")
        return bytes(body)
    finally:
        _Reading.num_bodies -= 1
        _Reading.num_bytes -= len(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``. Strict: no NaN or Infinity, no lone surrogates, no bottomless nesting, some bounds.

    Raises ``InvalidRequest``.
    """
    if len(body) > MAX_CONTAINERS and body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise InvalidRequest(f"The JSON of the body has more than {MAX_CONTAINERS} lists and objects.")
    if _has_slow_numbers(body):
        raise InvalidRequest("The JSON of the body has too many numbers with exponents.")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequest("The JSON of the body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.") from None
    except msgspec.ValidationError:
        raise InvalidRequest("A number is too large.", field=_field_that_fails(body)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _has_slow_numbers(body: bytes) -> bool:
    """Whether it would take long to read the floats in ``body``. Most bodies are too short to look into."""
    if len(body) < 5 * MAX_LARGE_EXPONENTS:
        return False
    shape = body.translate(_SHAPE)  # this and counting are many times as fast as an expression
    if shape.count(b"0e00") + shape.count(b"0e+00") <= MAX_LARGE_EXPONENTS:
        return False
    return (
        sum(map(shape.count, _LARGE_EXPONENTS)) > MAX_LARGE_EXPONENTS
        or sum(map(shape.count, _EXPONENTS)) > MAX_EXPONENTS
    )


def convert(value: Any, kind: type[T]) -> T:
    """``value`` as an object of type ``kind``. Raises ``InvalidRequest`` with the path of the first mistake."""
    try:
        return msgspec.convert(value, kind, strict=True, str_keys=True)
    except RecursionError:
        raise InvalidRequest("The JSON of the body is nested too deeply.") from None
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None


def _field_that_fails(body: bytes) -> str | None:
    """Name of the first field whose value cannot be decoded, if the body is an object."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return None
    for name, raw in fields.items():
        try:
            msgspec.json.decode(raw)
        except msgspec.ValidationError:
            return _printable(name)
    return None


def _printable(name: str) -> str:
    return ascii(name)[1:-1][:100]


def _named(message: str) -> InvalidRequest:
    """msgspec says what and where (``Expected `int`, got `str` - at `$.n```); the client gets it as field and text."""
    place = _PLACE.search(message)
    path = place["path"] if place else ""
    what = _PLACE.sub("", message)
    if unknown := _UNKNOWN_FIELD.fullmatch(what):
        name = _joined(path, _printable(unknown["name"]))
        return InvalidRequest(f"{name} is not a field of this request", field=name)
    if missing := _MISSING_FIELD.fullmatch(what):
        name = _joined(path, missing["name"])
        return InvalidRequest(f"{name} is missing", field=name)
    item_of = _ITEM.fullmatch(path)
    return InvalidRequest(
        f"{path or 'the body'}: {what.replace('`', '')}", field=item_of["name"] if item_of else path or None
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is longer than {limit} bytes.")
