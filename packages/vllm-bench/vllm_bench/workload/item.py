"""One request as a workload wants it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Messages(tuple[dict[str, Any], ...]):
    """A conversation so far, in OpenAI's form: ``{"role": ..., "content": ...}`` each."""

    __slots__ = ()


class Texts(tuple[str, ...]):
    """Several texts in one request."""

    __slots__ = ()


class Ranking(NamedTuple):
    """A query, and the documents to rank by it."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request, before it is turned into the body of an API."""

    prompt: str | list[int] | Messages | Texts | Ranking
    """Text, token ids, or a conversation; for models that make vectors and scores, also several texts."""
    prompt_len: int | None = None
    """Tokens of the prompt, by a tokenizer; None where there is none."""
    output_len: int | None = None
    """Most tokens of the answer; None leaves it to the server."""
    offset: float | None = None
    """Seconds from the begin of the run at which it is due (of a follow-up: from the end of the turn before);
    None: as soon as possible."""
    follow_up: "Callable[[str], WorkItem | None] | None" = None
    """Makes the next turn of a conversation from the text of this one's answer; None ends it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of this request's body alone."""
    num_inputs: int = 1
    """Sequences that the model reads for it."""
