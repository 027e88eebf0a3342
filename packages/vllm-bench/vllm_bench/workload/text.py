"""Text of so many tokens, by whatever can count them."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy


class CountedText(NamedTuple):
    """A text, and how many tokens it has."""

    text: str
    num_tokens: int | None
    """None: nobody could count them."""


class TextSource(Protocol):
    """Makes up texts and counts the tokens of given ones."""

    name: str
    """What it counts with, for the result; such as the tokenizer's folder."""

    def make(self, num_tokens: int, rng: "numpy.random.Generator") -> CountedText:
        """A random text of ``num_tokens`` tokens, or as near as can be had; the count is of what it really has."""

    def count(self, text: str) -> int | None:
        """Tokens of ``text``; None when nobody can tell."""
