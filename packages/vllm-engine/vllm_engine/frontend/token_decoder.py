"""Ids to text, one token at a time: whatever comes out, piece after piece, is the text of all ids at once."""

import codecs
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from vllm_engine.frontend.backends import TokenizerBackend
from vllm_engine.frontend.token_bytes import TextStart, TokenRules

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

MAX_PENDING_TOKENS = 16
"""Tokens that a window waits for a character to become whole; UTF-8 needs at most four."""
CONTEXT_TOKENS = 5
"""Tokens of the prompt that a window starts with."""


class TokenDecoder(Protocol):
    """The text of a growing sequence of ids."""

    def push(self, token_id: int) -> str:
        """Text that is certain now that this token has come; often empty in the middle of a character."""
        ...

    def finish(self) -> str:
        """What is left when no more tokens come."""
        ...


class ByteTable(dict[int, bytes]):
    """Token id -> bytes, filled on use. Tokens that leave no trace in the text have no bytes."""

    def __init__(self, backend: TokenizerBackend, rules: TokenRules, *, skip_special_tokens: bool) -> None:
        super().__init__()
        self.rules = rules
        self._backend = backend
        self._hidden = backend.special_ids if skip_special_tokens else frozenset[int]()
        self.whole = _WholeTexts(self)
        """Token id -> its text, None where its bytes end within a character."""

    def __missing__(self, token_id: int) -> bytes:
        token = self.token(token_id)
        value = self[token_id] = b"" if token is None else self.rules.to_bytes(token)
        return value

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None when it is unknown or hidden."""
        return None if token_id in self._hidden else self._backend.id_to_token(token_id)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of all ids at once, from the beginning of a text."""
        pieces = [self[token_id] for token_id in token_ids]
        start = _Start.of(self)
        for i, token_id in enumerate(token_ids):
            if start is None or start.done:
                break
            pieces[i] = start.apply(token_id)
        return b"".join(pieces).decode("utf-8", "replace")


class _WholeTexts(dict[int, str | None]):
    """The texts of tokens that need nothing of the next one, filled on use."""

    def __init__(self, table: ByteTable) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, token_id: int) -> str | None:
        piece = self._table[token_id]
        text, used = codecs.utf_8_decode(piece, "replace", False)
        value = self[token_id] = text if used == len(piece) else None
        return value


class _Start:
    """The beginning of a text, until the space that the encoder put there has gone by."""

    __slots__ = ("_left", "_mark", "_rule", "_table", "done")

    def __init__(self, table: ByteTable, rule: TextStart) -> None:
        self._table = table
        self._rule = rule
        self._mark = rule.mark.encode()
        self._left = rule.count
        self.done = False

    @classmethod
    def of(cls, table: ByteTable) -> "_Start | None":
        return None if table.rules.start is None else cls(table, table.rules.start)

    def apply(self, token_id: int) -> bytes:
        """Bytes of the next token of the beginning."""
        piece = self._table[token_id]
        if not piece:
            return piece
        if self._rule.kind == "drop":
            self.done = True
            token = self._table.token(token_id) or ""
            return self._table.rules.to_bytes(token.replace(self._rule.mark, ""))
        while self._left and piece.startswith(self._mark):
            piece = piece[len(self._mark) :]
            self._left -= 1
        self.done = bool(piece) or not self._left
        return piece


class ByteDecoder:
    """For tokenizers whose tokens are bytes: each token costs one look-up and one step of a UTF-8 decoder.

    The text continues that of the prompt. If the prompt ends within a character, that character belongs to the output
    as soon as the output completes it.
    """

    __slots__ = ("_after_prompt", "_pending", "_start", "_table")

    def __init__(self, table: ByteTable, prompt_token_ids: Sequence[int] = ()) -> None:
        self._table = table
        self._start = _Start.of(table)
        for token_id in prompt_token_ids:
            if self._start is None:
                break
            self._begin(token_id, self._start)
        self._pending = _unfinished_character(table, prompt_token_ids)
        self._after_prompt = bool(self._pending)

    def push(self, token_id: int) -> str:
        """Text that is certain now that this token has come."""
        if not self._pending and self._start is None:
            whole = self._table.whole[token_id]
            if whole is not None:
                return whole
        piece = self._table[token_id] if self._start is None else self._begin(token_id, self._start)
        return self._text(piece, final=False) if piece else ""

    def finish(self) -> str:
        """U+FFFD if the last character is not whole, as decoding all ids at once has it."""
        return self._text(b"", final=True)

    def _begin(self, token_id: int, start: _Start) -> bytes:
        piece = start.apply(token_id)
        if start.done:
            self._start = None
        return piece

    def _text(self, piece: bytes, *, final: bool) -> str:
        data = self._pending + piece
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._pending = data[used:]
        if self._after_prompt and text:
            # The prompt's own text ends in U+FFFD for its broken character: not once more.
            self._after_prompt = False
            text = text.removeprefix(REPLACEMENT)
        return text


def _unfinished_character(table: ByteTable, token_ids: Sequence[int]) -> bytes:
    """The bytes at the end that begin a UTF-8 character but do not complete it; at most three."""
    tail = b""
    for token_id in reversed(token_ids):
        tail = table[token_id] + tail
        if len(tail) >= 3:
            break
    tail = tail[-3:]
    lead = max((i for i, byte in enumerate(tail) if byte >= 0xC0), default=None)
    if lead is None:
        return b""
    tail = tail[lead:]
    _, used = codecs.utf_8_decode(tail, "replace", False)
    # The decoder also waits for the third byte of a surrogate (ED A0 to ED BF), though no character begins like that.
    return b"" if used or len(tail.decode("utf-8", "replace")) > 1 else tail


class WindowDecoder:
    """For any other tokenizer: decodes the last few tokens before and after each new one, and takes the difference."""

    __slots__ = ("_after_added", "_backend", "_join_added", "_new", "_old", "_old_text", "_skip")

    def __init__(
        self,
        backend: TokenizerBackend,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> None:
        self._backend = backend
        self._skip = skip_special_tokens
        self._join_added = not skip_special_tokens and not spaces_between_special_tokens
        self._after_added = False
        self._old = self._last_known(prompt_token_ids)
        self._old_text = self._decode(self._old)
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that is certain now that this token has come."""
        if not self._known([token_id]):
            return ""
        after_added, self._after_added = self._after_added, token_id in self._backend.added_ids
        self._new.append(token_id)
        if self._join_added and after_added and self._after_added:
            self._move_on()
            return self._backend.id_to_token(token_id) or ""
        text = self._decode(self._old + self._new)
        if text.endswith(REPLACEMENT) and len(self._new) < MAX_PENDING_TOKENS:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return self._take(self._decode(self._old + self._new)) if self._new else ""

    def _take(self, text: str) -> str:
        new_text = text[len(self._old_text) :]
        if new_text or len(self._new) >= MAX_PENDING_TOKENS:
            self._move_on()
        return new_text

    def _move_on(self) -> None:
        self._old, self._new = (self._old + self._new)[-CONTEXT_TOKENS:], []
        self._old_text = self._decode(self._old)

    def _last_known(self, token_ids: Sequence[int]) -> list[int]:
        """The last tokens of a prompt that leave a trace: with none, the output would be the beginning of a text."""
        return list(islice((i for i in reversed(token_ids) if self._known([i])), CONTEXT_TOKENS))[::-1]

    def _known(self, token_ids: Sequence[int]) -> list[int]:
        hidden: Callable[[int], bool] = self._backend.special_ids.__contains__ if self._skip else lambda _: False
        return [i for i in token_ids if not hidden(i) and self._backend.id_to_token(i) is not None]

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skip)
