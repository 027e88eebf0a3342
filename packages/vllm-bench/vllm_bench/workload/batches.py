"""Several texts in one request, for models that make vectors and scores: ``--random-batch-size``."""

import itertools
from argparse import Namespace
from collections.abc import Iterator

from vllm_bench.workload.item import Texts, WorkItem

_BATCHED_DATASETS = ("random", "random-rerank")


def num_requests(options: Namespace) -> int | None:
    """Requests that the options ask for; None: as many as ``--duration`` has room for."""
    if options.duration is not None:
        return None
    count: int = options.num_prompts
    return -(-count // options.random_batch_size) if options.dataset_name in _BATCHED_DATASETS else count


def batch_sizes(options: Namespace) -> Iterator[int]:
    """Texts in each request; the last one has what is left."""
    size: int = options.random_batch_size
    if getattr(options, "duration", None) is not None:
        return itertools.repeat(size)
    whole, rest = divmod(options.num_prompts, size)
    return itertools.chain(itertools.repeat(size, whole), [rest] if rest else [])


def batched(items: Iterator[WorkItem], sizes: Iterator[int]) -> Iterator[WorkItem]:
    """Items of one text each, as items of several; a single one stays as it is."""
    for size in sizes:
        together = list(itertools.islice(items, size))
        texts = Texts(item.prompt for item in together if isinstance(item.prompt, str))
        if size == 1:
            yield from together
        elif texts:
            counts = [item.prompt_len for item in together if item.prompt_len is not None]
            yield WorkItem(texts, sum(counts) if len(counts) == len(together) else None, num_inputs=len(texts))
