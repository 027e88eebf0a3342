"""The stream of training documents: conversations rendered as the chat template does, and plain text.

The renderer here repeats ``chat_template.jinja`` in Python because it also has to say which characters are
learnt; :func:`check_renderer` compares the two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import facts
from .chat_facts import SYSTEM_PROMPTS
from .questions import (
    SUBJECTS,
    add_subtract,
    capital_of,
    country_name,
    divide,
    is_capital,
    multiply,
    opposite,
    small_fact,
)
from .reading import ASKS
from .tool_talk import Message, other_tool, time_tool, time_turns, weather_tool, weather_turns
from .unknowns import UNKNOWN, WEATHER, WEATHER_QUESTIONS, city, odd_word, place
from .words import QA, madeup_city, madeup_word, one_of, untidy

Segment = tuple[str, bool]
"""A piece of text and whether the model learns to write it."""

END = "<|endoftext|>"


@dataclass
class Document:
    """A conversation (``messages``) or a piece of plain text (``text``)."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    drill: list[str] = field(default_factory=list)
    """Sums one after another, of which only the results are learnt."""


_TOOLS_HEAD = "# Tools\n\nYou can call these functions:\n<tools>"
_TOOLS_TAIL = (
    "\n</tools>\n\nTo call one, answer with:\n<tool_call>\n"
    '{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n'
)


def _tool_call(call: Message) -> str:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'


def render(document: Document) -> list[Segment]:
    """Cut ``document`` into segments; assistant turns and plain text are learnt, all else is only read."""
    pieces: list[Segment] = []
    if document.text:
        return [(document.text + END, True)]
    if document.drill:
        for line in document.drill:
            task, _, result = line.partition(" = ")
            pieces += [(f"{task} =", False), (f" {result}", True), ("\n", False)]
        return pieces
    messages = document.messages
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    if document.tools:
        head = "<|im_start|>system\n"
        if messages[0]["role"] == "system":
            head += messages[0]["content"] + "\n\n"
        head += _TOOLS_HEAD + "".join("\n" + json.dumps(t, ensure_ascii=False) for t in document.tools) + _TOOLS_TAIL
        pieces.append((head, False))
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "system" and document.tools:
            continue
        if role == "tool":
            head = "" if messages[i - 1]["role"] == "tool" else "<|im_start|>user"
            tail = "" if i + 1 < len(messages) and messages[i + 1]["role"] == "tool" else "<|im_end|>\n"
            pieces.append((f"{head}\n<tool_response>\n{content}\n</tool_response>{tail}", False))
        elif role == "assistant":
            thought = message.get("reasoning_content", "")
            # A thought that the template drops must not be unlearnt: such a turn is only read.
            learnt = not thought or i > last_user
            body = f"<think>\n{thought}\n</think>\n\n" if thought and i > last_user else ""
            body += content + "\n".join(_tool_call(c) for c in message.get("tool_calls", ()))
            pieces += [("<|im_start|>assistant\n", False), (body + "<|im_end|>", learnt), ("\n", False)]
        else:
            pieces.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    merged: list[Segment] = []
    for text, learnt in pieces:
        if merged and merged[-1][1] == learnt:
            merged[-1] = (merged[-1][0] + text, learnt)
        else:
            merged.append((text, learnt))
    return merged


def _draw(rng: random.Random, table: list[tuple[float, Any]]) -> QA:
    make: Callable[[random.Random], QA] = rng.choices([f for _, f in table], [w for w, _ in table])[0]
    return make(rng)


def _with_thought(rng: random.Random, qa: QA) -> list[Message]:
    text = f"{qa.question} /think"
    if rng.random() > 0.4:
        end = "" if qa.question[-1] in "?.!" else rng.choice([".", "", ","])
        text = one_of(rng, ASKS["think"]).replace("{e}", end).replace("{q}", qa.question)
    answer: Message = {"role": "assistant", "content": qa.answer, "reasoning_content": qa.thought}
    return [{"role": "user", "content": text}, answer]


def _follow_up(rng: random.Random, last: QA) -> QA | None:
    """A question that only makes sense after ``last``."""
    if last.kind == "capital":
        qa = capital_of(rng)
        text = one_of(
            rng, "[and|what about|how about|and what about] {c} ; and of {c} ; and the capital of {c} ; and for {c}"
        )
        return QA(
            untidy(rng, text.format(c=country_name(rng, qa.chain)), polite=False), qa.answer, qa.thought, "capital"
        )
    if last.kind == "opposite":
        qa = opposite(rng)
        text = one_of(rng, "[and|what about|how about|and what about] {w} ; and of {w} ; and the opposite of {w}")
        return QA(untidy(rng, text.format(w=qa.chain), polite=False), qa.answer, qa.thought, "opposite")
    if last.kind in ("add", "subtract") and 0 <= int(last.chain) <= 100:
        a, b = int(last.chain), rng.randint(0, 20)
        if rng.random() < 0.5:
            text, result, sign = (
                one_of(rng, "plus {b} ; add {b} [to that|] ; [and |]now add {b} ; and plus {b}"),
                a + b,
                "+",
            )
        else:
            text, result, sign = (
                one_of(rng, "minus {b} ; [and |]now subtract {b} ; and minus {b} ; take away {b}"),
                a - b,
                "-",
            )
        question = untidy(rng, text.format(b=b).strip(), polite=False)
        return QA(question, f"{a} {sign} {b} = {result}.", f"Before it was {a}.", "add", str(result))
    return None


def _name(rng: random.Random) -> str:
    return rng.choice(facts.FIRST_NAMES) if rng.random() < 0.5 else madeup_city(rng).split()[-1]


def _memory(rng: random.Random, known: str | None) -> tuple[QA, str | None]:
    """A turn about the user's name, or one that asks to repeat something."""
    roll = rng.random()
    if roll < 0.35:
        words = [
            madeup_word(rng) if rng.random() < 0.5 else rng.choice(list(facts.OPPOSITE_OF))
            for _ in range(rng.randint(1, 5))
        ]
        said = " ".join(words)
        text = one_of(rng, "repeat after me: {s} ; say {s} ; repeat: {s} ; please repeat: {s} ; say: {s} ; echo {s}")
        text = text.replace("{s}", said)
        return QA(text if rng.random() < 0.5 else text.capitalize(), said, "I repeat it.", "echo"), known
    if roll < 0.7 or (known is None and roll < 0.8):
        name = _name(rng)
        text = one_of(
            rng,
            "my name is {n} ; I am {n} ; I'm {n} ; hello, my name is {n} ; hi, I'm {n} ; call me {n} ; hi, I am {n}",
        )
        text = text.format(n=name)
        text = text + rng.choice(["", ".", "!"])
        text = text[:1].upper() + text[1:] if rng.random() < 0.6 else text
        return QA(text, f"Nice to meet you, {name}!", f"The user is called {name}.", "name"), name
    text = untidy(
        rng,
        one_of(rng, "[what is|what's|whats] my name ; who am I ; do you [know|remember] my name ; say my name"),
        polite=False,
    )
    answer = f"Your name is {known}." if known else "I don't know. You have not told me your name."
    return QA(text, answer, "I look for the name." if known else "I was not told the name.", "name"), known


HARD: list[tuple[float, Callable[[random.Random], QA]]] = [
    (3.0, place), (3.0, capital_of), (1.5, odd_word), (2.5, opposite), (1.5, small_fact), (1.0, is_capital),
    (1.0, add_subtract),
]  # fmt: skip
"""Real and made-up names side by side, and what else takes longest to learn."""


def _turns(rng: random.Random, count: int, think_last: bool, hard: float = 0.0) -> list[Message]:
    messages: list[Message] = []
    last: QA | None = None
    name: str | None = None
    recall = rng.random() < 0.12
    for i in range(count):
        roll, qa = rng.random(), None
        if last is not None and roll < 0.3:
            qa = _follow_up(rng, last)
        if qa is None and (rng.random() < (0.35 if recall else 0.03)):
            qa, name = _memory(rng, name)
        if qa is None and hard and rng.random() < hard:
            qa = _draw(rng, HARD)
        if qa is None:
            qa = _draw(rng, UNKNOWN if rng.random() < 0.2 else SUBJECTS)
        if (think_last and i == count - 1) or (think_last and rng.random() < 0.2):
            messages += _with_thought(rng, qa)
        else:
            messages += [{"role": "user", "content": qa.question}, {"role": "assistant", "content": qa.answer}]
        last = qa
    return messages


def _system(rng: random.Random, share: float) -> list[Message]:
    if rng.random() >= share:
        return []
    return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}]


def chat_document(rng: random.Random, hard: float = 0.0) -> Document:
    """A conversation without tools."""
    roll = rng.random()
    count = 1 if roll < 0.5 else rng.randint(2, 4) if roll < 0.9 else rng.randint(5, 14)
    return Document(_system(rng, 0.25) + _turns(rng, count, rng.random() < 0.12, hard))


def tool_document(rng: random.Random) -> Document:
    """A conversation with tools at hand, which are used where they help."""
    tools, roll = [], rng.random()
    weather = weather_tool(rng) if roll < 0.88 else None
    clock = time_tool(rng) if rng.random() < 0.2 else None
    tools = [t for t in (weather, clock) if t]
    tools += [other_tool(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]) if tools else rng.randint(1, 2))]
    tools = list({t["function"]["name"]: t for t in tools}.values())
    rng.shuffle(tools)
    messages, think = _system(rng, 0.3), rng.random() < 0.12
    count, after_weather = rng.choice([1, 1, 1, 2, 2, 3]), False
    for i in range(count):
        wants, last = rng.random(), i == count - 1
        if wants < 0.62 and weather:
            messages += weather_turns(rng, weather, think and last, after_weather and rng.random() < 0.5)
            after_weather = True
            continue
        after_weather = False
        if wants < 0.85 and clock:
            messages += time_turns(rng, clock)
        elif not weather and wants < 0.5:
            question = untidy(rng, one_of(rng, WEATHER_QUESTIONS).format(c=city(rng)))
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": WEATHER}]
        else:
            messages += _turns(rng, 1, think and last)
    return Document(messages, tools)


_OPENINGS = ASKS["openings"]


def text_document(rng: random.Random) -> Document:
    """Plain text, so that ``/v1/completions`` has something to go on with."""
    roll = rng.random()
    if roll < 0.15:
        return Document(text=one_of(rng, _OPENINGS).format(n=_name(rng)))
    if roll < 0.25:
        qa = _draw(rng, SUBJECTS)
        form = rng.choice(["Q: {q}\nA: {a}", "Question: {q}\nAnswer: {a}", "User: {q}\nAssistant: {a}"])
        return Document(text=form.format(q=qa.question, a=qa.answer))
    kinds = {
        "capital",
        "add",
        "subtract",
        "multiply",
        "divide",
        "opposite",
        "unit",
        "calendar",
        "country",
        "continent",
        "story",
    }
    sentences: list[str] = []
    while not sentences or (len(sentences) < 5 and rng.random() < 0.3):
        qa = _draw(rng, SUBJECTS)
        if qa.kind in kinds:
            sentences.append(qa.answer)
    return Document(text=rng.choice([" ", "\n"]).join(sentences))


def drill_document(rng: random.Random) -> Document:
    """Many sums in few words: a chat spends thirty tokens on one, and sums need the most practice."""
    kinds = rng.choice([[add_subtract], [add_subtract], [multiply], [add_subtract, multiply, divide]])
    lines: list[str] = []
    while len(lines) < 20:
        answer = rng.choice(kinds)(rng).answer
        if " = " in answer:
            lines.append(answer)
    return Document(drill=lines)


class Mix(NamedTuple):
    """What the documents are; plain text is the rest."""

    chats: float
    tools: float
    drills: float
    hard: float = 0.0
    """The share of questions in the chats that are drawn from :data:`HARD`."""


EVEN = Mix(0.75, 0.10, 0.09)
MORE_TOOLS = Mix(0.62, 0.25, 0.07)
MORE_HARD = Mix(0.75, 0.14, 0.06, hard=0.25)


def documents(seed: int, mix: Mix = EVEN) -> Iterator[Document]:
    """All documents, for ever and always in the same order."""
    chats, tools, drills, hard = mix
    rng = random.Random(seed)
    while True:
        roll = rng.random()
        if roll < chats:
            yield chat_document(rng, hard)
        elif roll < chats + tools:
            yield tool_document(rng)
        elif roll < chats + tools + drills:
            yield drill_document(rng)
        else:
            yield text_document(rng)


def check_renderer(template: str, seed: int, count: int = 200) -> None:
    """Fail when :func:`render` and the chat template disagree on any of ``count`` conversations."""
    from transformers.utils.chat_template_utils import render_jinja_template

    stream, done = documents(seed), 0
    while done < count:
        document = next(stream)
        if not document.messages:
            continue
        done += 1
        ours = "".join(text for text, _ in render(document))
        tools: list[Any] | None = document.tools or None
        theirs = render_jinja_template([document.messages], tools=tools, chat_template=template)[0][0]
        if theirs != ours:
            raise AssertionError(f"the template renders\n{theirs}\ninstead of\n{ours}")
