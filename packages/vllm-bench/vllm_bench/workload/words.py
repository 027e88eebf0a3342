"""Texts of plain words, for want of a tokenizer: their tokens are counted by the server, or not at all."""

from collections.abc import Callable

import numpy

from vllm_bench.workload.text import CountedText

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body"
).split()


class ServerCountedWords:
    """Random words whose tokens the server's ``/tokenize`` has counted.

    The count of a text is taken as the sum of its words', which holds for every tokenizer that splits at spaces.

    Args:
        count: tokens of a text by the server; raises ``LookupError`` where it cannot say.
    """

    name = "words, counted by the server"
    adds_up = True

    def __init__(self, count: Callable[[str], int]) -> None:
        base = _spelled(WORDS)
        whole = count(base)
        together = count(base + base) - whole
        self._overhead = whole - together
        self._tokens = [1] * len(WORDS)
        if together != len(WORDS):
            self._tokens = [max(1, count(f"{base} {word}") - whole) for word in WORDS]
        self._count = count

    def make(self, num_tokens: int, rng: numpy.random.Generator) -> CountedText:
        """See ``TextSource``; words that would be too long at the end are passed over."""
        chosen: list[str] = []
        left = num_tokens
        shortest = min(self._tokens)
        while left >= shortest:
            for number in rng.integers(len(WORDS), size=max(8, left)).tolist():
                if self._tokens[number] <= left:
                    chosen.append(WORDS[number])
                    left -= self._tokens[number]
        return CountedText(_spelled(chosen), num_tokens - left)

    def count(self, text: str) -> int | None:
        """See ``TextSource``."""
        try:
            return self._count(text) - self._overhead
        except LookupError:
            return None


class UncountedWords:
    """Random words, one for each token that was asked for: what they are to the model, its ``usage`` must tell."""

    name = "words, not counted"
    adds_up = True

    def make(self, num_tokens: int, rng: numpy.random.Generator) -> CountedText:
        """See ``TextSource``."""
        return CountedText(_spelled([WORDS[number] for number in rng.integers(len(WORDS), size=num_tokens)]), None)

    def count(self, text: str) -> int | None:
        """See ``TextSource``."""
        return None


def _spelled(words: list[str]) -> str:
    """Each word after a space, so that a word has the same tokens wherever it stands."""
    return "".join(f" {word}" for word in words)
