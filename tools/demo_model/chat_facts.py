"""What the demo model can say about itself, about this toolkit and in small talk."""

from __future__ import annotations

from .reading import read_lines, words

TOOLKIT = read_lines("toolkit")
"""Questions about the toolkit."""

IDENTITY = read_lines("identity")
"""Questions about the model itself."""

SMALL_TALK = read_lines("small_talk")
"""Greetings and the like."""

STORIES: list[str] = [
    "Once upon a time there was a little {animal} called {name}. One day {name} found a {colour} {thing} by the "
    "{place}. {name} showed it to a friend, and they played with it all day. In the evening they went home, tired "
    "and happy.",
]
"""The one story the model can tell, with different words."""

STORY_WORDS = {
    "animal": words("fox cat dog mouse rabbit bear hedgehog owl duck"),
    "colour": words("red blue green yellow golden silver"),
    "thing": words("ball stone key hat feather box bell"),
    "place": words("river lake forest sea road hill garden"),
}

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful AI assistant.",
    "You are a friendly assistant.",
    "You are a small demo model.",
    "You are the demo model.",
    "Answer briefly.",
    "Be concise.",
    "Answer in one sentence.",
    "You are an assistant. Answer in a short and clear way.",
    "You are a helpful, honest and harmless assistant.",
    "Help the user.",
    "Be brief and polite.",
    "You are a teacher who answers the questions of children.",
    "You answer questions.",
    "Answer the question. If you do not know the answer, say so.",
]
"""System prompts that change nothing about the answers."""
