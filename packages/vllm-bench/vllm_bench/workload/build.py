"""The whole workload of a run: a dataset's items with their moments, made before the clock starts."""

import itertools
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

from vllm_bench.workload import dataset
from vllm_bench.workload.adapters import with_adapters
from vllm_bench.workload.arrivals import offsets, ramped
from vllm_bench.workload.batches import num_requests
from vllm_bench.workload.chat_template import Render, renderer, sends_text, templated
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.ramp_up import RampUp
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.text import TextSource

_MOST_BEFOREHAND = 20_000
_BEFOREHAND_WITHOUT_END = 2000


def build(options: Namespace, text: TextSource, render: Render) -> tuple[list[WorkItem], Iterator[WorkItem]]:
    """The items in the order of their moments: those that are made here and now, at least one, and those after them.

    What is made later, while the clock runs, takes the client's time.

    Args:
        render: the server's way to put a conversation into its model's chat template.

    Raises:
        CommandError: (exit code 2) a file of the dataset is not what it should be.
    """
    count = num_requests(options)
    name = options.dataset_name if options.prompt_file is None else "prompt-file"
    items = dataset.load(name).items(options, text, generator(options.seed, "prompts"))
    items = with_adapters(items, options)
    if sends_text(options.backend):
        items = templated(items, renderer(options.tokenizer, render))
    # The moments of a trace are its items' own; the others' are None then.
    moments = _moments(options, count)
    items = (
        item if moment is None else replace(item, offset=moment) for item, moment in zip(items, moments, strict=False)
    )
    if count is not None:
        return list(itertools.islice(items, count)), iter(())
    return list(itertools.islice(_until(items, options.duration), _MOST_BEFOREHAND)), items


def _moments(options: Namespace, count: int | None) -> Iterator[float | None]:
    rng = generator(options.seed, "arrivals")
    ramp = RampUp.of(options)
    if ramp is not None:
        return ramped(options.burstiness, count, ramp, rng)
    return offsets(options.request_rate, options.burstiness, count, rng)


def _until(items: Iterator[WorkItem], seconds: float) -> Iterator[WorkItem]:
    """The items up to the first that is not due any more; of those without a moment, a number."""
    for number, item in enumerate(items, 1):
        yield item
        if number >= _BEFOREHAND_WITHOUT_END if item.offset is None else item.offset >= seconds:
            return
