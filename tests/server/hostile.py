"""Values that have hurt servers, and the requests that carry each of them in each field of each route.

The requests are made from the application's own description: a new route, or a new field, is among them by itself.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LEAK = re.compile(
    r"0x[0-9a-f]{6,}|Traceback|site-packages|\.py\b|\.so\b|/usr/|/home/|/tmp/|/root|/proc/|<class|object at|line \d+,"
)
"""What no body may hold: addresses in memory, paths of the host, names of our files."""

NO_JSON: dict[str, bytes] = {
    "NaN": b"NaN",
    "infinity": b"Infinity",
    "minus infinity": b"-Infinity",
    "1e400": b"1e400",
    "a lone surrogate": rb'"\ud800"',
    "a turned pair of surrogates": rb'"\udfff\ud800"',
    "a lone surrogate as a key": rb'{"\ud800": 1}',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "invalid UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "a control character": b'"\x01"',
    "a leading zero": b"01",
    "no digits": b"1.",
    "another literal": b"undefined",
    "other quotes": b"'a'",
    "a comma too many": b"[1,]",
    "a comment": b"/* 1 */ 1",
    "an unfinished escape": rb'"\u00"',
    "an unfinished value": b'{"a":',
    "nesting": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}
"""No value of JSON, or of the bounds that a server may set to it: always refused."""

SMALL: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "true": b"true",
    "zero": b"0",
    "minus zero": b"-0.0",
    "minus one": b"-1",
    "a half": b"0.5",
    "tiny": b"1e-400",
    "large": b"1e308",
    "a million": b"1000000",
    "2**31": b"2147483648",
    "-2**31-1": b"-2147483649",
    "2**63": b"9223372036854775808",
    "2**64": b"18446744073709551616",
    "-2**63-1": b"-9223372036854775809",
    "400 digits": b"1" + b"0" * 400,
    "no text": b'""',
    "a space": b'" "',
    "a NUL": rb'"a\u0000b"',
    "a digit": b'"1"',
    "NaN as text": b'"NaN"',
    "an expression that explodes": b'"(a+)+$"',
    "a template": b'"{{ [].__class__.__base__ }}{% for i in range(1000000000) %}{% endfor %}"',
    "a path": b'"../../../../etc/passwd"',
    "a file": b'"file:///etc/passwd"',
    "an address of the host": b'"http://169.254.169.254/latest"',
    "line breaks": rb'"a\r\nSet-Cookie: b\r\n\r\n"',
    "characters that turn": b'"\\u202e\\ufeff\\u0085\xe2\x80\xa8"',
    "a list": b"[]",
    "a list of nulls": b"[null, null]",
    "a list of lists": b"[[]]",
    "a list of numbers": b"[-1, 0, 1e308, 99999999999]",
    "a list of texts": b'["", "a", "\\u0000"]',
    "a list of all kinds": b'[1, "a", [], {}, null, true, 0.5]',
    "an object": b"{}",
    "another object": b'{"a": 1, "": null}',
    "an object of numbers": b'{"-1": 1e308, "99999999999": -1e308, "0": 0}',
    "a key twice": b'{"a": 1, "a": 2}',
    "a reserved key": b'{"__class__": {"__init__": {"__globals__": 1}}, "__proto__": 1}',
    "a message": b'{"role": "user", "content": "a", "text": "a", "type": "text"}',
}

LARGE: dict[str, bytes] = {
    "a long text": b'"' + b"a " * 50_000 + b'"',
    "a long word": b'"' + b"\xc3\xa9" * 50_000 + b'"',
    "a long list of numbers": b"[" + b",".join([b"7"] * 20_000) + b"]",
    "a long list of texts": b"[" + b",".join([b'"ab"'] * 10_000) + b"]",
    "a long list of lists": b"[" + b",".join([b"[1]"] * 1_000) + b"]",
    "many keys": b"{" + b",".join(b'"%d":1' % number for number in range(2_000)) + b"}",
}
HUGE: dict[str, bytes] = {
    "10 MB of words": b'"' + b"word " * 2_000_000 + b'"',
    "10 MB of a letter": b'"' + b"a" * 10_000_000 + b'"',
    "10 MB of escapes": b'"' + rb"\u00e9" * 1_700_000 + b'"',
    "100,000 numbers": b"[" + b",".join([b"7"] * 100_000) + b"]",
    "100,000 texts": b"[" + b",".join([b'"ab"'] * 100_000) + b"]",
    "100,000 lists": b"[" + b",".join([b"[1]"] * 100_000) + b"]",
    "100,000 objects": b"[" + b",".join([b'{"role":"user","content":"a"}'] * 100_000) + b"]",
    "100,000 keys": b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
    "100,000 large exponents": b"[" + b",".join([b"1e307"] * 100_000) + b"]",
    "100,000 small exponents": b"[" + b",".join([b"-9.9E-0307"] * 100_000) + b"]",
    "a million exponents": b"[" + b",".join([b"1e23"] * 1_000_000) + b"]",
    "millions of lists": b"[" + b"[]," * 3_000_000 + b"[]]",
    "millions of objects": b"[" + b'{"a":1},' * 3_000_000 + b"{}]",
}
VALUES = {**NO_JSON, **SMALL, **LARGE}

_MARK = "\ue000 the hostile value \ue000"
_DEEPEST = 4


@dataclass(frozen=True)
class Request:
    """``value`` in a ``place`` such as ``messages[].content`` of a route's body."""

    method: str
    path: str
    place: str
    value: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.place} = {self.value}"


def requests(description: dict[str, Any], values: dict[str, bytes] = VALUES) -> Iterator[Request]:
    """Each value in each field of the body of each route in an OpenAPI ``description``, and in place of the body."""
    for method, path, schema in bodies(description):
        for name, value in values.items():
            yield Request(method, path, "", name, value)
        for place, template in places(schema, description):
            before, after = json.dumps(template).encode().split(json.dumps(_MARK).encode())
            for name, value in values.items():
                yield Request(method, path, place, name, before + value + after)


def bodies(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and schema of each kind of body that a route takes."""
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            for media in content.values():
                schema = media["schema"]
                for choice in schema.get("anyOf") or schema.get("oneOf") or [schema]:
                    yield method.upper(), path, choice


def places(schema: dict[str, Any], description: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each place in a value of ``schema``, with a small value of it that has a mark there."""
    yield from _places(schema, description, 0)


def _places(schema: dict[str, Any], description: dict[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    if depth == _DEEPEST:
        return
    for choice in _choices(schema, description):
        if "properties" in choice:
            whole = sample(choice, description)
            for name, field in choice["properties"].items():
                yield name, {**whole, name: _MARK}
                for inner, template in _places(field, description, depth + 1):
                    yield f"{name}{'' if inner.startswith('[') else '.'}{inner}", {**whole, name: template}
        elif choice.get("items"):
            yield "[]", [_MARK]
            for inner, template in _places(choice["items"], description, depth + 1):
                yield f"[]{'' if inner.startswith('[') else '.'}{inner}", [template]
        elif isinstance(choice.get("additionalProperties"), dict):
            yield "{}", {"1": _MARK}


def sample(schema: dict[str, Any], description: dict[str, Any]) -> Any:
    """A small value of ``schema``: what is required, and as few tokens as may be."""
    schema = _choices(schema, description)[0]
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return "user" if "user" in schema["enum"] else schema["enum"][0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            short = {
                name: 2 for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in properties
            }
            return {**{name: sample(properties[name], description) for name in schema.get("required", ())}, **short}
        case "array":
            return [sample(schema["items"], description)] if schema.get("items") else []
        case "string":
            return "Hello"
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return False
    return None


def _choices(schema: dict[str, Any], description: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of value that a schema allows, references followed, null last."""
    if "$ref" in schema:
        return _choices(description["components"]["schemas"][schema["$ref"].rpartition("/")[2]], description)
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner:
        return [choice for item in inner for choice in _choices(item, description) if choice.get("type") != "null"]
    return [schema]
