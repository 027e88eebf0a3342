"""Forbidden words as token sequences."""

from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend.tokenizer import Tokenizer

PROBE = "\n"


def bad_word_sequences(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    """Every way in which a tokenizer spells the words: at the start of a line, after a space, and inside of a text.

    Raises:
        InvalidRequest: for a word that is no text the tokenizer can spell.
    """
    # Some tokenizers put a space before every text they are given: the spelling inside of a text shows only after
    # another character.
    lead = tokenizer.encode(PROBE, add_special_tokens=False)
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        if not bare:
            raise InvalidRequest("bad_words must not be blank", field="bad_words")
        try:
            plain, spaced, inside = tokenizer.encode_batch([bare, " " + bare, PROBE + bare], add_special_tokens=False)
        except InvalidRequest as error:
            raise InvalidRequest(f"bad_words: {error}", field="bad_words") from error
        for spelling in (plain, spaced, inside[len(lead) :] if inside[: len(lead)] == lead else []):
            if spelling:
                found[tuple(spelling)] = None
    return [list(spelling) for spelling in found]
