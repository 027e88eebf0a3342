"""Conversations of a file, in ShareGPT's form or in OpenAI's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vllm_bench.workload.json_entries import Entry, read_list_or_lines

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}
"""What a file calls a speaker -> OpenAI's role."""


class Turn(NamedTuple):
    """What one of the two says."""

    role: str
    """``system``, ``user`` or ``assistant``; of someone else (a tool) as the file has it."""
    text: str


def read_conversations(file: Path) -> Iterator[list[Turn]]:
    """The conversations of a file: a JSON list, or an object a line, of ``{"conversations": [{"from": "human",
    "value": "..."}, ...]}`` or ``{"messages": [{"role": "user", "content": "..."}, ...]}``.

    Raises:
        CommandError: (exit code 2) the file cannot be read; an entry is none, with its line.
    """
    for entry in read_list_or_lines(file):
        openai = "messages" in entry.fields and "conversations" not in entry.fields
        speaker, said = ("role", "content") if openai else ("from", "value")
        turns = entry.objects("messages" if openai else "conversations")
        yield [_turn(entry, turn, speaker, said) for turn in turns]


def _turn(entry: Entry, turn: dict[str, Any], speaker: str, said: str) -> Turn:
    role, text = turn.get(speaker), turn.get(said)
    if not isinstance(role, str) or not isinstance(text, str):
        raise entry.wrong(f"a turn needs {speaker!r} and {said!r}, both texts")
    return Turn(_ROLES.get(role.lower(), role), text)
