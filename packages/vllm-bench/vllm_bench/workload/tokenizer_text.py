"""Texts of random tokens by the model's own tokenizer, read with ``tokenizers`` (extra ``vllm-bench[tokenizer]``)."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from vllm_bench.workload.text import CountedText
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ATTEMPTS = 10
_WORD = re.compile("[Ġ▁][A-Za-z]+")
"""A vocabulary's way to write a word after a space."""
_MOST_WORDS = 8192
_ENOUGH_WORDS = 64


class TokenizerText:
    """Random tokens as text that has as many tokens again.

    They are words of one token each, which stay that wherever they stand; a vocabulary without such words gives any
    tokens, whose text may be cut into others.

    Args:
        path: a ``tokenizer.json``, or the folder that holds it.

    Raises:
        CommandError: (exit code 2) it cannot be read, or ``tokenizers`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise CommandError('--tokenizer needs: pip install "vllm-bench[tokenizer]"', exit_code=2) from error
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise CommandError(f"--tokenizer {path}: there is no tokenizer.json", exit_code=2)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise CommandError(f"--tokenizer {file}: {error}", exit_code=2) from error
        self.name = str(path)
        self._words = _words_of_one_token(self._tokenizer)
        self.adds_up = len(self._words) >= _ENOUGH_WORDS
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids = numpy.array([number for number in range(self._tokenizer.get_vocab_size()) if number not in special])

    def make(self, num_tokens: int, rng: numpy.random.Generator) -> CountedText:
        """See ``TextSource``."""
        if self.adds_up:
            chosen = rng.integers(len(self._words), size=num_tokens).tolist()
            return CountedText("".join([self._words[number] for number in chosen]), num_tokens)
        return self._make_of_any_tokens(num_tokens, rng)

    def _make_of_any_tokens(self, num_tokens: int, rng: numpy.random.Generator) -> CountedText:
        """As text they may be cut into others: it is trimmed or filled up until it fits."""
        ids = rng.choice(self._ids, size=num_tokens).tolist()
        for _ in range(_ATTEMPTS):
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == num_tokens:
                break
            ids = ids[:num_tokens] + rng.choice(self._ids, size=max(0, num_tokens - len(ids))).tolist()
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        return CountedText(text, self.count(text))

    def count(self, text: str) -> int:
        """See ``TextSource``."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, and of no more special tokens than it names itself."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _words_of_one_token(tokenizer: "Tokenizer") -> list[str]:
    """Words, each after a space, of one token alone and beside others, in the vocabulary's order; perhaps none.

    Where there are enough of them, they are also one token without the space: many chat templates trim a message.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    spelled = sorted((number, token) for token, number in vocabulary.items() if _WORD.fullmatch(token))
    words = [" " + token[1:] for _, token in spelled[:_MOST_WORDS]]
    words = _of_tokens(1, tokenizer, words, words)
    words = _of_tokens(1, tokenizer, words, [word[1:] for word in words], at_least=_ENOUGH_WORDS)
    together = tokenizer.encode("".join(words), add_special_tokens=False)
    return words if len(together.ids) == len(words) else []


def _of_tokens(
    number: int, tokenizer: "Tokenizer", words: list[str], texts: list[str], *, at_least: int = 0
) -> list[str]:
    """Those of ``words`` whose text has that many tokens; all of them if fewer than ``at_least`` have."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    found = [word for word, encoding in zip(words, encodings, strict=True) if len(encoding.ids) == number]
    return found if len(found) >= at_least else words
