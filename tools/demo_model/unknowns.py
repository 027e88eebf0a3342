"""Questions the demo model must not answer: it is taught to say that it doesn't know.

Made-up names are drawn anew every time, so the rule to learn is "this is not one of the few things I know"
instead of a list of bad words.
"""

from __future__ import annotations

import random

from . import facts
from .reading import ASKS, read_words, words
from .words import QA, madeup_city, madeup_country, madeup_person, madeup_word, one_of, untidy

PERSON = "I don't know who that is. I am only a small demo model."
PLACE = "I don't know that place. I am only a small demo model."
WORD = "I don't know that word. I am only a small demo model."
OTHER = "I don't know. I am only a small demo model."
NOW = "I don't know. I can't see the world outside this chat."
WEATHER = "I don't know. I can't see the weather without a tool."
TOO_BIG = "I don't know. I only calculate with small numbers."

_FAMOUS = read_words("people")

NOUNS = read_words("nouns")
_VERBS = words(
    "build make cook bake fix repair paint clean find sell buy learn teach write draw grow catch open close install "
    "design invent play cut fold wash dry carry hide measure cool heat choose"
)

_TOPICS = read_words("topics")


def person(rng: random.Random) -> QA:
    """Somebody the model has never heard of."""
    if rng.random() < 0.3:
        name = rng.choice(_FAMOUS)
    else:
        name = madeup_person(rng, facts.FIRST_NAMES) if rng.random() < 0.85 else madeup_city(rng)
    text = one_of(
        rng,
        ASKS["person"],
    ).format(p=name)
    return QA(untidy(rng, text), PERSON, f"I have never heard of {name}.", "unknown")


def place(rng: random.Random) -> QA:
    """The capital of a country that does not exist, or a place nobody knows."""
    name = madeup_country(rng)
    roll = rng.random()
    if roll < 0.08:  # close to a real name, so that the whole name has to be read
        real = rng.choice(facts.COUNTRIES)[0].removeprefix("the ")
        name = rng.choice(
            [real + rng.choice(["ia", "land", "stan", "o"]), rng.choice("BDFKLMZ") + real.lower()[1:] + "a"]
        )
    elif roll < 0.14:
        name = "the " + rng.choice(["Kingdom of ", "Republic of ", "Island of ", "Moon", "planet "]) + name
    elif roll < 0.18:
        name = rng.choice(["the moon", "Mars", "Jupiter", "Africa", "Asia", "Europe", "California", "Texas", "Bavaria"])
    text = one_of(
        rng,
        ASKS["place"],
    ).format(c=name, d=rng.choice(facts.COUNTRIES)[1])
    return QA(untidy(rng, text), PLACE, f"I have never heard of {name}.", "unknown")


def about_country(rng: random.Random) -> QA:
    """Things about a known country that are not its capital or its continent."""
    name = rng.choice(facts.COUNTRIES)[rng.randint(0, 1)]
    text = one_of(
        rng,
        ASKS["about_country"],
    ).format(c=name)
    return QA(untidy(rng, text), OTHER, f"I only know where {name} is.", "unknown")


def odd_word(rng: random.Random) -> QA:
    """Opposites, colours, sounds and units of things that do not exist."""
    word = madeup_word(rng)
    text = one_of(
        rng,
        ASKS["odd_word"],
    ).format(w=word, v=madeup_word(rng))
    return QA(untidy(rng, text), WORD, f"I have never heard of {word}.", "unknown")


def now(rng: random.Random) -> QA:
    """What only somebody outside could see."""
    text = one_of(
        rng,
        ASKS["now"],
    )
    return QA(untidy(rng, text), NOW, "I can't see that from here.", "unknown")


WEATHER_QUESTIONS = ASKS["weather"]


def weather_without_tool(rng: random.Random) -> QA:
    """The weather, with no tool to look it up."""
    if rng.random() < 0.4:
        text = one_of(
            rng, ASKS["weather_without_tool"],
        )  # fmt: skip
    else:
        text = one_of(rng, WEATHER_QUESTIONS).format(c=city(rng))
    return QA(untidy(rng, text.strip()), WEATHER, "I have no tool for the weather.", "unknown")


def city(rng: random.Random) -> str:
    """A city: real ones and made-up ones."""
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(facts.COUNTRIES)[1]
    if roll < 0.4:
        return rng.choice(facts.CITIES).replace("_", " ")
    return madeup_city(rng)


def anything(rng: random.Random) -> QA:
    """Everything else one may ask a language model."""
    topic = rng.choice(_TOPICS) if rng.random() < 0.5 else rng.choice(NOUNS)
    text = one_of(
        rng,
        ASKS["anything"],
    ).format(
        t=topic, n=rng.choice(NOUNS), m=rng.choice(NOUNS), v=rng.choice(_VERBS), k=rng.randint(2, 999),
        y=rng.randint(1000, 2030), c=rng.choice(facts.COUNTRIES)[1], d=city(rng),
    )  # fmt: skip
    return QA(untidy(rng, text), OTHER, "That is not one of the things I know.", "unknown")


def too_big(rng: random.Random) -> QA:
    """Sums beyond what the model was taught."""
    big = rng.choice([rng.randint(201, 999), rng.randint(1000, 99999)])
    other = rng.randint(2, rng.choice([99, 999, 9999]))
    a, b = (big, other) if rng.random() < 0.7 else (other, big)
    sign = rng.choice(["+", "-", "*", "/", "plus", "minus", "times", "divided by", "x"])
    if rng.random() < 0.3:
        a, b, sign = rng.randint(13, 99), rng.randint(13, 99), rng.choice(["*", "times", "x", "×", "multiplied by"])
    front = rng.choice(["", "what is ", "what's ", "calculate ", "how much is "])
    text = untidy(rng, f"{front}{a} {sign} {b}" if sign.isalpha() or rng.random() < 0.7 else f"{front}{a}{sign}{b}")
    return QA(text, TOO_BIG, "These numbers are too big for me.", "unknown")


UNKNOWN = [
    (3.0, person), (4.5, place), (1.5, about_country), (2.5, odd_word), (1.2, now), (1.2, weather_without_tool),
    (3.0, anything), (0.8, too_big),
]  # fmt: skip
"""Every kind of question without an answer, with its share."""
