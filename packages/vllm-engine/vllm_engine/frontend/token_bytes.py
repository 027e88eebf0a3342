"""The bytes that each token stands for, read off a tokenizer's decoder. The base of all turning of ids into text.

Two kinds of decoder cover nearly all language models, and in both a token means the same bytes wherever it stands:
byte-level BPE (GPT-2 and its heirs), and SentencePiece style with a space marker and byte tokens (Llama and its heirs).
With a table of those bytes a token costs one look-up, and UTF-8 that is spread over tokens needs no decoding twice.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class TextStart:
    """What a decoder leaves out at the very beginning of a text: the space that its encoder put there.

    ``strip``: up to ``count`` times ``mark`` from the front of the text, over several tokens if need be.
    ``drop``: every ``mark`` in the first token, before it is turned into bytes.
    """

    kind: Literal["strip", "drop"]
    mark: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How a token's string becomes bytes (``to_bytes``), and what is different at the start of a text."""

    to_bytes: Callable[[str], bytes]
    start: TextStart | None


def rules_of(decoder_json: bytes | str | None) -> TokenRules | None:
    """The rules of a ``tokenizers`` decoder given as JSON; None for one whose tokens depend on their neighbours."""
    if decoder_json is None:
        return None
    decoder = json.loads(decoder_json)
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return TokenRules(byte_level_bytes, None)
    if kinds == ["Metaspace"]:
        return _metaspace_rules(steps[0])
    return _replace_rules(steps)


def _metaspace_rules(step: dict[str, Any]) -> TokenRules:
    mark = step["replacement"]
    start = None if step.get("prepend_scheme", "always") == "never" else TextStart("drop", mark)
    return TokenRules(lambda token: token.replace(mark, " ").encode(), start)


def _replace_rules(steps: list[dict[str, Any]]) -> TokenRules | None:
    """Rules of a chain ``Replace* ByteFallback? (Fuse Strip?)?``, the shape of SentencePiece decoders."""
    rest = list(steps)
    replacements: list[tuple[str, str]] = []
    while rest and rest[0].get("type") == "Replace":
        step = rest.pop(0)
        pattern = step["pattern"].get("String")
        if pattern is None:
            return None
        replacements.append((pattern, step["content"]))
    byte_fallback = bool(rest) and rest[0].get("type") == "ByteFallback"
    rest = rest[byte_fallback:]
    start = None
    if rest and rest[0].get("type") == "Fuse":
        rest = rest[1:]
        if rest and rest[0].get("type") == "Strip" and rest[0]["stop"] == 0:
            start = TextStart("strip", rest[0]["content"], rest[0]["start"])
            rest = rest[1:]
    if rest or not (replacements or byte_fallback):
        return None

    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        if byte_fallback and (value := byte_token_value(token)) is not None:
            return bytes((value,))
        return token.encode()

    return TokenRules(to_bytes, start)


def byte_token_value(token: str) -> int | None:
    """The byte that a SentencePiece byte token such as ``<0x0A>`` stands for; None for any other token."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2, 2019): printable Latin-1 is itself, the rest is from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token with any other character in it (an added one) is plain text."""
    alphabet = byte_level_alphabet()
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:
        return token.encode()
