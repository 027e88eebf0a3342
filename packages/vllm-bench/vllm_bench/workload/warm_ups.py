"""Requests before the clock starts."""

from typing import TYPE_CHECKING

from vllm_bench.workload.item import Ranking, Texts, WorkItem
from vllm_bench.workload.text import TextSource

if TYPE_CHECKING:
    import numpy

_CHARACTERS_OF_A_TOKEN = 4


def warm_ups(like: WorkItem, count: int, text: TextSource, rng: "numpy.random.Generator") -> list[WorkItem]:
    """Requests of the same size as one of the run; their prompts are others, which the server could have cached."""
    return [
        WorkItem(_another(like, text, rng), output_len=like.output_len, extra=like.extra, num_inputs=like.num_inputs)
        for _ in range(count)
    ]


def _another(like: WorkItem, text: TextSource, rng: "numpy.random.Generator") -> str | Texts | Ranking:
    def other(prompt: object, size: int | None = None) -> str:
        return text.make(size or max(1, len(str(prompt)) // _CHARACTERS_OF_A_TOKEN), rng).text

    if isinstance(like.prompt, Texts):
        return Texts(other(prompt) for prompt in like.prompt)
    if isinstance(like.prompt, Ranking):
        return Ranking(other(like.prompt.query), tuple(other(document) for document in like.prompt.documents))
    return other(like.prompt, like.prompt_len)
