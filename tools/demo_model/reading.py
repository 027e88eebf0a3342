"""Reading the text files in ``data``, and lists of words in the other modules."""

from __future__ import annotations

from pathlib import Path

Line = tuple[list[str], str, str]
"""The ways to ask, the answer and the thought before it."""

_DATA = Path(__file__).with_name("data")


def words(text: str) -> list[str]:
    """The words of ``text``; easier to read and to add to than a list of quoted strings."""
    return text.split()


def read_words(name: str) -> list[str]:
    """The entries of ``data/<name>.txt``, parted by commas or line ends."""
    text = (_DATA / f"{name}.txt").read_text(encoding="utf-8")
    return [entry.strip() for line in text.splitlines() for entry in line.split(",") if entry.strip()]


def read_lines(name: str) -> list[Line]:
    """The questions and answers of ``data/<name>.txt``; the form stands at the head of each file."""
    found: list[Line] = []
    questions: list[str] = []
    answer = ""
    for line in (_DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(": ")
        if mark == "Q":
            questions.append(rest)
        elif mark == "A":
            answer = rest.replace("\\n", "\n")
        elif mark == "T":
            found.append((questions, answer, rest))
            questions = []
    return found


def read_asks() -> dict[str, list[str]]:
    """The sections of ``data/asks.txt``."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (_DATA / "asks.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("[["):
            section = line.strip("[]")
            found[section] = []
        elif section and line:
            found[section].append(line)
    return found


ASKS = read_asks()
"""Ways to ask, by the name of the section."""
