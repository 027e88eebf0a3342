"""Small helpers for making questions: choices, made-up names, and the untidiness of real typing."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .reading import words

_CHOICE = re.compile(r"\[([^\[\]]*)\]")

_ONSETS = words("b br c ch cr d dr f fl g gl gr h j k kr l m n p pl qu r s sh sk st t tr v w z th y")
_VOWELS = words("a e i o u a e i o u ai ea ie oa ou")
_CODAS = ["", "", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "ng", "ck"]
_CITY_ENDS = [
    "",
    "",
    "",
    "burg",
    "ville",
    "ton",
    "ford",
    "stad",
    "haven",
    "port",
    "field",
    "grad",
    "mouth",
    "a",
    "o",
    "i",
]
_LAND_ENDS = ["ia", "land", "stan", "onia", "avia", "istan", "ania", "", "ea", "or", "mark", "ova", "wana", "esia"]
_LAST_ENDS = ["", "", "son", "man", "er", "ski", "ov", "ez", "ini", "berg", "well", "sen", "ley"]
_CITY_FRONTS = ["San", "New", "Port", "El", "Saint", "Los", "Bad", "Upper", "North", "Le", "Fort", "Lake"]


@dataclass
class QA:
    """One question with its answer and the thought that leads to it."""

    question: str
    answer: str
    thought: str
    kind: str
    chain: str = ""
    """The subject, when the next question may be "And ...?"."""


def expand(rng: random.Random, pattern: str) -> str:
    """Resolve every ``[a|b]`` of ``pattern`` by a draw."""
    while True:
        found = _CHOICE.search(pattern)
        if found is None:
            return pattern
        pattern = pattern[: found.start()] + rng.choice(found[1].split("|")) + pattern[found.end() :]


def one_of(rng: random.Random, alternatives: str | list[str]) -> str:
    """Draw one of the alternatives (a list, or parted by `` ; ``) and expand it."""
    if isinstance(alternatives, str):
        alternatives = alternatives.split(" ; ")
    return expand(rng, rng.choice(alternatives))


def capital(text: str) -> str:
    """``text`` with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def _syllables(rng: random.Random, low: int, high: int) -> str:
    count = rng.randint(low, high)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def madeup_word(rng: random.Random) -> str:
    """A lower-case word that (almost surely) means nothing."""
    return _syllables(rng, 1, 3)


def madeup_city(rng: random.Random) -> str:
    """A city name from nowhere; names like these teach copying instead of remembering."""
    kind = rng.random()
    if kind < 0.10:  # any letters at all, so that no way of cutting a word into tokens is new
        name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    elif kind < 0.5:
        name = _syllables(rng, 1, 2) + rng.choice(_CITY_ENDS)
    else:
        name = _syllables(rng, 2, 3) + rng.choice(["", "", "a", "o", "e"])
    name = name.capitalize()
    if rng.random() < 0.15:
        name = f"{rng.choice(_CITY_FRONTS)} {name}"
    return name


def madeup_country(rng: random.Random) -> str:
    """A country that does not exist."""
    return (_syllables(rng, 1, 2) + rng.choice(_LAND_ENDS)).capitalize()


def madeup_person(rng: random.Random, first_names: list[str]) -> str:
    """First and last name of nobody."""
    first = rng.choice(first_names) if rng.random() < 0.6 else _syllables(rng, 1, 2).capitalize()
    return f"{first} {(_syllables(rng, 1, 2) + rng.choice(_LAST_ENDS)).capitalize()}"


def untidy(rng: random.Random, text: str, polite: bool = True, keep_case: bool = False) -> str:
    """``text`` as people type it: perhaps in lower case, without its full stop, or with a please."""
    text = capital(text) if rng.random() < 0.6 else text
    if polite and rng.random() < 0.12:
        front = rng.choice(
            ["Please tell me: ", "Hey, ", "Hi, ", "Hello, ", "Hi! ", "Hello! ", "Tell me, ", "Please: ", "So, ",
             "Quick question: ", "Question: ", "Can you tell me: ", "I want to know: ", "And ", "Ok, ", "Now, "]
        )  # fmt: skip
        text = front + (text if keep_case or rng.random() < 0.5 else text[:1].lower() + text[1:])
    if text[-1:].isalnum() or text[-1:] in "`)":
        text += rng.choice(["?", "?", "?", "", "", ".", " ?"])
    elif text[-1:] in "?." and rng.random() < 0.25:
        text = text[:-1]
    if polite and rng.random() < 0.04:
        text += rng.choice([" Please.", " please", " Thanks.", " thanks", " Thank you."])
    roll = rng.random()
    if not keep_case and roll < 0.22:
        text = text.lower()
    elif not keep_case and roll < 0.255:
        text = text.upper()
    return text
