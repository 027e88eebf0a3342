"""Requests before the clock starts."""

from typing import TYPE_CHECKING

from vllm_bench.workload.item import Ranking, Texts, WorkItem
from vllm_bench.workload.text import TextSource

if TYPE_CHECKING:
    import numpy

_CHARACTERS_OF_A_TOKEN = 4


def warm_ups(like: WorkItem, count: int, text: TextSource, rng: "numpy.random.Generator") -> list[WorkItem]:
    """Requests of the same size as one of the run; their prompts are others, which the server could have cached."""
    if not count:
        return []
    sizes = _sizes(like, text)
    result = []
    for _ in range(count):
        made = [text.make(size, rng).text for size in sizes]
        prompt: str | Texts | Ranking = made[0]
        if isinstance(like.prompt, Texts):
            prompt = Texts(made)
        elif isinstance(like.prompt, Ranking):
            prompt = Ranking(made[0], tuple(made[1:]))
        result.append(WorkItem(prompt, output_len=like.output_len, extra=like.extra, num_inputs=like.num_inputs))
    return result


def _sizes(like: WorkItem, text: TextSource) -> list[int]:
    """Tokens of each text of a request."""
    if isinstance(like.prompt, Texts):
        texts = list(like.prompt)
    elif isinstance(like.prompt, Ranking):
        texts = [like.prompt.query, *like.prompt.documents]
    else:
        return [like.prompt_len or _guess(str(like.prompt))]
    return [text.count(one) or _guess(one) for one in texts]


def _guess(text: str) -> int:
    return max(1, len(text) // _CHARACTERS_OF_A_TOKEN)
