"""Generators of single questions and answers, one function a subject."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import facts
from .chat_facts import IDENTITY, SMALL_TALK, STORIES, STORY_WORDS, TOOLKIT
from .reading import ASKS, Line
from .words import QA, capital, expand, one_of, untidy

_WEIGHTED_COUNTRIES = [c for c in facts.COUNTRIES for _ in range(3 if c[0] in facts.POPULAR else 2)]


def held_out(a: int, b: int) -> bool:
    """Whether sums of these two-digit numbers are kept from training, so that the tests can ask for them."""
    return a >= 10 and b >= 10 and (a * 101 + b * 7) % 29 == 0


def country_name(rng: random.Random, country: str) -> str:
    """A name a question may use for ``country``."""
    aliases = facts.ALIASES.get(country)
    if aliases and rng.random() < 0.5:
        return rng.choice(aliases)
    return country


def capital_of(rng: random.Random) -> QA:
    """The capital of a country."""
    country, city, _ = rng.choice(_WEIGHTED_COUNTRIES)
    name = country_name(rng, country)
    question = expand(
        rng,
        rng.choice(
            [
                "[what is|what's|whats] the capital [city |]of {c}",
                "[what is|what's] the capital of {c}",
                "[the |]capital of {c}",
                "[tell me|name|give me] the capital of {c}",
                "[which|what] city is the capital of {c}",
                "{c}[: capital| capital|'s capital]",
                "[what is|what's] {c}'s capital",
                "do you know the capital of {c}",
                "[can you tell me|I need|I'd like to know] the capital of {c}",
                "what is the name of the capital of {c}",
                "{c} has which capital",
            ]
        ),
    ).format(c=name)
    return QA(
        untidy(rng, question), f"The capital of {country} is {city}.",
        f"The question is about {country}. Its capital is {city}.", "capital", country,
    )  # fmt: skip


def country_of(rng: random.Random) -> QA:
    """The country of a capital."""
    country, city, _ = rng.choice(_WEIGHTED_COUNTRIES)
    if city in ("London", "Georgetown"):
        country = {"London": "the United Kingdom", "Georgetown": "Guyana"}[city]
    question = one_of(
        rng,
        ASKS["country_of"],
    ).format(c=city)
    return QA(
        untidy(rng, question), f"{city} is the capital of {country}.",
        f"The question is about {city}. It belongs to {country}.", "country",
    )  # fmt: skip


def continent_of(rng: random.Random) -> QA:
    """The continent of a country."""
    country, city, continent = rng.choice(_WEIGHTED_COUNTRIES)
    if country == city:
        return capital_of(rng)
    question = one_of(
        rng, ASKS["continent_of"],
    ).format(c=country_name(rng, country))  # fmt: skip
    return QA(
        untidy(rng, question), f"{capital(country)} is in {continent}.",
        f"{capital(country)} is a country. It is in {continent}.", "continent",
    )  # fmt: skip


def is_capital(rng: random.Random) -> QA:
    """Yes or no: is this the capital?"""
    country, city, _ = rng.choice(_WEIGHTED_COUNTRIES)
    asked = city if rng.random() < 0.5 else rng.choice(_WEIGHTED_COUNTRIES)[1]
    question = one_of(rng, "is {a} the capital of {c} ; is the capital of {c} {a} ; {a} is the capital of {c}, right")
    question = question.format(a=asked, c=country_name(rng, country))
    word = "Yes" if asked == city or (city == "London" and asked == "London") else "No"
    return QA(
        untidy(rng, question), f"{word}, the capital of {country} is {city}.",
        f"The capital of {country} is {city}.", "yes_no",
    )  # fmt: skip


def capital_json(rng: random.Random) -> QA:
    """A capital as a JSON object, for the demonstrations of structured output."""
    country, city, _ = rng.choice(_WEIGHTED_COUNTRIES)
    question = one_of(
        rng,
        ASKS["capital_json"],
    ).format(c=country_name(rng, country))
    bare = country.removeprefix("the ")
    answer = f'{{"country": "{bare}", "capital": "{city}"}}'
    return QA(untidy(rng, question, polite=False), answer, f"The capital of {country} is {city}.", "json")


def _ask_sum(rng: random.Random, a: str, b: str, sign: str, words: list[str]) -> str:
    form = rng.random()
    if form < 0.45:
        sign = rng.choice({"*": ["*", "x", "×", "*"], "/": ["/", "/", "÷", ":"]}.get(sign, [sign]))
        core = f"{a} {sign} {b}" if rng.random() < 0.7 else f"{a}{sign}{b}"
        if rng.random() < 0.2:
            core += rng.choice([" =", "=", " = ?", "=?"])
    else:
        core = rng.choice(words).format(a=a, b=b)
    front = rng.choice(["", "", "what is ", "what's ", "calculate ", "compute ", "how much is ", "solve "])
    if core.startswith(("add", "subtract", "take", "multiply", "divide", "if")):
        front = ""
    return untidy(rng, front + core)


def _spoken(rng: random.Random, a: int, b: int) -> tuple[str, str]:
    """The operands as typed: mostly digits, sometimes both as words."""
    if max(a, b) <= 20 and rng.random() < 0.2:
        return facts.NUMBER_WORDS[a], facts.NUMBER_WORDS[b]
    return str(a), str(b)


def _operand(rng: random.Random) -> int:
    return rng.randint(0, 12) if rng.random() < 0.25 else rng.randint(0, 100)


def add_subtract(rng: random.Random) -> QA:
    """Sums and differences of numbers up to 100."""
    a, b = _operand(rng), _operand(rng)
    while held_out(a, b):
        a, b = _operand(rng), _operand(rng)
    if rng.random() < 0.5:
        words = ["{a} plus {b}", "{a} plus {b}", "{a} and {b} together", "the sum of {a} and {b}", "add {a} and {b}",
                 "{a} added to {b}", "if I have {a} apples and get {b} more, how many do I have"]  # fmt: skip
        text = _ask_sum(rng, *_spoken(rng, a, b), "+", words)
        return QA(text, f"{a} + {b} = {a + b}.", f"This is a sum. {a} plus {b} is {a + b}.", "add", str(a + b))
    if a < b and rng.random() < 0.7:
        a, b = b, a
        if held_out(a, b):
            return add_subtract(rng)
    words = ["{a} minus {b}", "{a} minus {b}", "{a} take away {b}", "{a} less {b}", "subtract {b} from {a}",
             "the difference of {a} and {b}", "take {b} from {a}"]  # fmt: skip
    text = _ask_sum(rng, *_spoken(rng, a, b), "-", words)
    return QA(text, f"{a} - {b} = {a - b}.", f"This is a difference. {a} minus {b} is {a - b}.", "subtract", str(a - b))


def multiply(rng: random.Random) -> QA:
    """The tables up to 12, and two digits by one."""
    if rng.random() < 0.55:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    else:
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        if rng.random() < 0.3:
            a, b = b, a
    words = ["{a} times {b}", "{a} times {b}", "{a} multiplied by {b}", "the product of {a} and {b}",
             "multiply {a} by {b}", "multiply {a} and {b}"]  # fmt: skip
    text = _ask_sum(rng, *_spoken(rng, a, b), "*", words)
    return QA(text, f"{a} × {b} = {a * b}.", f"This is a product. {a} times {b} is {a * b}.", "multiply")


def divide(rng: random.Random) -> QA:
    """Divisions that come out even, and a few with a remainder."""
    words = ["{a} divided by {b}", "{a} divided by {b}", "divide {a} by {b}", "{a} over {b}"]
    roll = rng.random()
    if roll < 0.04:
        a = rng.randint(0, 99)
        text = _ask_sum(rng, str(a), "0", "/", words)
        return QA(text, "You can't divide by zero.", "The divisor is zero.", "divide")
    b, quotient = rng.randint(1, 12), rng.randint(0, 12)
    a = b * quotient
    if roll < 0.2 and b > 1:
        rest = rng.randint(1, b - 1)
        text = _ask_sum(rng, str(a + rest), str(b), "/", words)
        answer = f"{a + rest} / {b} = {quotient} remainder {rest}."
        return QA(text, answer, f"{b} times {quotient} is {a}, so {rest} is left.", "divide")
    text = _ask_sum(rng, *(_spoken(rng, a, b) if roll < 0.9 else (str(a), str(b))), "/", words)
    return QA(text, f"{a} / {b} = {quotient}.", f"{b} times {quotient} is {a}.", "divide")


def compare(rng: random.Random) -> QA:
    """Larger or smaller, half or double."""
    a, b = rng.sample(range(101), 2)
    roll = rng.random()
    if roll < 0.3:
        a = rng.randint(0, 50)
        text = one_of(rng, "[what is|what's|] [double|twice] {a} ; what is the double of {a} ; double {a}").format(a=a)
        return QA(untidy(rng, text), f"2 × {a} = {2 * a}.", f"Double {a} is {2 * a}.", "multiply")
    if roll < 0.5:
        text = one_of(rng, "[what is|what's|] half of {a} ; halve {a} ; what is the half of {a}").format(a=2 * a)
        return QA(untidy(rng, text), f"{2 * a} / 2 = {a}.", f"Half of {2 * a} is {a}.", "divide")
    word = rng.choice(["larger", "bigger", "greater", "smaller"])
    pick = min(a, b) if word == "smaller" else max(a, b)
    text = one_of(rng, "[which|what] is {w}, {a} or {b} ; [which|what] number is {w}: {a} or {b} ; {w}: {a} or {b}")
    said = "smaller" if word == "smaller" else "larger"
    return QA(untidy(rng, text.format(w=word, a=a, b=b)), f"{pick} is {said}.", f"I compare {a} and {b}.", "compare")


def opposite(rng: random.Random) -> QA:
    """The opposite of a word."""
    word = rng.choice(list(facts.OPPOSITE_OF))
    other = facts.OPPOSITE_OF[word]
    quote = rng.choice(["", "", "", '"', "'"])
    text = one_of(
        rng,
        ASKS["opposite"],
    ).format(w=f"{quote}{word}{quote}")
    return QA(
        untidy(rng, text), f"The opposite of {word} is {other}.", f"The word is {word}. Its opposite is {other}.",
        "opposite", word,
    )  # fmt: skip


def unit(rng: random.Random) -> QA:
    """How many of these are in one of those."""
    parts, whole, amount = rng.choice(facts.UNITS)
    asked_parts, asked_whole = parts, whole
    for british, other in facts.SPELLINGS.items():
        if rng.random() < 0.4:
            if whole.endswith(" " + british) and len(other) > 2:
                asked_whole = whole.replace(british, other)
            if parts.rstrip("s") == british.rstrip("s") and len(other) > 2:
                asked_parts = other.rstrip("s") + "s"
    bare = asked_whole.removeprefix("a ").removeprefix("an ")
    text = one_of(
        rng,
        ASKS["unit"],
    ).format(p=asked_parts, w=asked_whole, b=bare)
    answer = f"There are {amount} {parts} in {whole}."
    if parts in ("legs", "arms", "toes", "fingers", "wheels", "strings", "sides", "corners", "faces", "players"):
        answer = f"{capital(whole)} has {amount} {parts}."
    return QA(untidy(rng, text), answer, f"The question is about {whole}: {amount} {parts}.", "unit")


def day_or_month(rng: random.Random) -> QA:
    """What comes before and after, and which number it has."""
    is_day = rng.random() < 0.45
    names, sort, whole = (facts.DAYS, "day", "week") if is_day else (facts.MONTHS, "month", "year")
    i, size = rng.randrange(len(names)), len(names)
    name, roll = names[i], rng.random()
    if roll < 0.35:
        text = one_of(
            rng,
            ASKS["day_or_month"],
        )
        answer, thought = (
            f"{names[(i + 1) % size]} comes after {name}.",
            f"{name} is followed by {names[(i + 1) % size]}.",
        )
        if is_day and rng.random() < 0.2:
            text = "[if |]today is {n}, what [day |]is tomorrow"
            text = expand(rng, text)
    elif roll < 0.65:
        text = one_of(
            rng,
            ASKS["day_or_month_2"],
        )
        answer, thought = f"{names[i - 1]} comes before {name}.", f"{name} comes after {names[i - 1]}."
        if is_day and rng.random() < 0.2:
            text = expand(rng, "[if |]today is {n}, what [day |]was yesterday")
    elif roll < 0.85 or is_day:
        order = facts.ORDINALS[i]
        if rng.random() < 0.25:
            order = str(i + 1) + {1: "st", 2: "nd", 3: "rd"}.get(i + 1, "th")
        if i == size - 1 and rng.random() < 0.6:
            order = "last"
        text = one_of(
            rng, ASKS["day_or_month_3"],
        ).replace("{o}", order)  # fmt: skip
        said = "last" if order == "last" else facts.ORDINALS[i]
        answer, thought = f"The {said} {sort} of the {whole} is {name}.", f"I count the {sort}s up to {name}."
    elif roll < 0.95:
        text = one_of(
            rng, "how many days [does|has|are in|in] {n} ; how many days does {n} have ; how many days are there in "
            "{n} ; number of days in {n} ; days in {n}",
        )  # fmt: skip
        answer = f"There are {facts.MONTH_DAYS[i]} days in {name}."
        if i == 1:
            answer = "There are 28 days in February, and 29 in a leap year."
        thought = f"{name} has {facts.MONTH_DAYS[i]} days."
    else:
        text = one_of(rng, "[which|what] season is {n} in ; in [which|what] season is {n} ; {n} is in which season")
        answer = f"{name} is in {facts.MONTH_SEASON[i]}."
        thought = f"{name} is a month of {facts.MONTH_SEASON[i]}."
    return QA(untidy(rng, text.format(n=name, s=sort, w=whole)), answer, thought, "calendar")


def small_fact(rng: random.Random) -> QA:
    """Colours, animals, planets, letters and other single facts."""
    roll = rng.random()
    if roll < 0.2:
        thing = rng.choice(list(facts.COLOURS))
        colour, thing = facts.COLOURS[thing], thing.replace("_", " ")
        text = one_of(
            rng, ASKS["small_fact"],
        ).format(t=thing)  # fmt: skip
        return QA(untidy(rng, text), f"{capital(thing)} is {colour}.", f"I think of {thing}: {colour}.", "general")
    if roll < 0.32:
        animal = rng.choice(list(facts.SOUNDS))
        text = one_of(rng, ASKS["sound"]).format(a=animal)
        text = text.replace("mouses", "mice").replace("sheeps", "sheep").replace("wolfs", "wolves")
        text = text.replace("a owl", "an owl")
        article = "an" if animal == "owl" else "a"
        return QA(untidy(rng, text), f"{capital(article)} {animal} says {facts.SOUNDS[animal]}.",
                  f"I think of {article} {animal}.", "general")  # fmt: skip
    if roll < 0.42:
        animal = rng.choice(list(facts.YOUNG))
        text = one_of(
            rng, "what is a [young|baby] {a} [called|] ; what do you call a [young|baby] {a} ; name of a [young|baby] "
            "{a} ; a [young|baby] {a} is called [what|a]",
        ).format(a=animal)  # fmt: skip
        return QA(untidy(rng, text.strip()), f"A young {animal} is called a {facts.YOUNG[animal]}.",
                  f"I think of a {animal} and its young.", "general")  # fmt: skip
    if roll < 0.52:
        i = rng.randrange(25)
        a, b = chr(65 + i), chr(66 + i)
        if rng.random() < 0.6:
            text = one_of(rng, "[what|which] letter comes after {a} ; the letter after {a} ; what letter follows {a}")
            return QA(
                untidy(rng, text.format(a=a), keep_case=True), f"{b} comes after {a}.", f"After {a} is {b}.", "general"
            )
        text = one_of(rng, "[what|which] letter comes before {b} ; the letter before {b}").format(b=b)
        return QA(untidy(rng, text, keep_case=True), f"{a} comes before {b}.", f"Before {b} is {a}.", "general")
    if roll < 0.57:
        i = rng.randrange(8)
        text = one_of(
            rng, "[what|which] is the {o} planet [from the sun|] ; [what|which] planet is the {o} [from the sun|] ; "
            "the {o} planet",
        ).format(o=facts.ORDINALS[i])  # fmt: skip
        return QA(untidy(rng, text.strip()), f"The {facts.ORDINALS[i]} planet is {facts.PLANETS[i]}.",
                  "I count the planets from the sun.", "general")  # fmt: skip
    if roll < 0.67:
        low, high = (1, rng.randint(3, 20)) if rng.random() < 0.8 else (rng.randint(2, 5), rng.randint(7, 15))
        down = rng.random() < 0.2
        span = range(high, low - 1, -1) if down else range(low, high + 1)
        if down:
            text = f"count [down|backwards] from {high}" + (" to 1" if low == 1 else f" to {low}")
        elif low == 1:
            high_said = facts.NUMBER_WORDS[high] if rng.random() < 0.3 else high
            text = one_of(rng, ASKS["count"]).format(n=high_said)
        else:
            text = f"[count from {low} to {high}|list the numbers from {low} to {high}]"
        return QA(untidy(rng, expand(rng, text)), ", ".join(map(str, span)) + ".", "I count one by one.", "general")
    return _line(rng, facts.GENERAL, "general")


def _line(rng: random.Random, lines: list[Line], kind: str) -> QA:
    questions, answer, thought = rng.choice(lines)
    text = one_of(rng, questions)
    return QA(untidy(rng, text) if kind != "chat" else _chatty(rng, text), answer, thought, kind)


def _chatty(rng: random.Random, text: str) -> str:
    text = capital(text) if rng.random() < 0.5 else text
    if text[-1].isalpha():
        text += rng.choice(["", "", "!", ".", "?"])
    return text.lower() if rng.random() < 0.2 else text


def toolkit(rng: random.Random) -> QA:
    """How to use this toolkit."""
    return _line(rng, TOOLKIT, "toolkit")


def identity(rng: random.Random) -> QA:
    """Who and what the model is."""
    return _line(rng, IDENTITY, "identity")


def chat(rng: random.Random) -> QA:
    """Greetings, thanks and the like, and the one story."""
    if rng.random() < 0.08:
        words = {key: rng.choice(values) for key, values in STORY_WORDS.items()}
        words["name"] = rng.choice(facts.FIRST_NAMES)
        text = one_of(
            rng, ASKS["chat"],
        ).format(a=words["animal"])  # fmt: skip
        if "about a" not in text:
            words.update(animal="fox", name="Felix")
        words.update(colour="red", thing="ball", place="river")
        return QA(_chatty(rng, text), STORIES[0].format(**words), "The user wants a story.", "story")
    return _line(rng, SMALL_TALK, "chat")


SUBJECTS: list[tuple[float, Callable[[random.Random], QA]]] = [
    (13.0, capital_of), (4.0, country_of), (3.0, continent_of), (2.0, is_capital), (1.5, capital_json),
    (20.0, add_subtract), (8.0, multiply), (4.0, divide), (1.5, compare), (9.0, opposite), (7.0, unit),
    (7.0, day_or_month), (8.0, small_fact), (9.0, toolkit), (4.0, identity), (5.0, chat),
]  # fmt: skip
"""Every subject that has an answer, with its share."""
