"""Text of so many tokens, by whatever can count them."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    adds_up: bool
    """Texts that ``make`` made have as many tokens joined as one by one."""

    def make(self, num_tokens: int, rng: "numpy.random.Generator") -> CountedText:
        """A random text of ``num_tokens`` tokens, or as near as can be had; the count is of what it really has."""

    def count(self, text: str) -> int | None:
        """Tokens of ``text``; None when nobody can tell."""


def joined(source: TextSource, parts: "Sequence[CountedText]") -> CountedText:
    """Texts that ``source`` made, one after the other, as one."""
    whole = "".join(part.text for part in parts)
    counts = [part.num_tokens for part in parts]
    if source.adds_up and None not in counts:
        return CountedText(whole, sum(count for count in counts if count is not None))
    # Tokens may merge where two texts meet.
    return CountedText(whole, None if None in counts else source.count(whole))
