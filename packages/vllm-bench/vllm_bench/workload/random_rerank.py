"""``--dataset-name random-rerank``: a query of random tokens, and documents to rank by it."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_bench.workload.batches import batch_sizes
from vllm_bench.workload.item import Ranking, WorkItem
from vllm_bench.workload.random_prompts import length_around
from vllm_bench.workload.text import CountedText, TextSource
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    import numpy


class RandomRerank:
    """See ``Dataset``. ``--num-prompts`` counts documents.

    A reranker reads the query once with each document, and both together have ``--random-input-len`` tokens, half of
    them the query's. With ``--no-reranker`` the model makes a vector of each text, so all have that length, and the
    query counts as one of ``--random-batch-size``.
    """

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--no-reranker``; its lengths and ``--random-batch-size`` are those of ``random``."""
        parser.add_argument(
            "--no-reranker",
            action="store_true",
            help="random-rerank: the model makes vectors, so it reads the query once and by itself",
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        whole = options.input_len or options.random_input_len
        if options.no_reranker and options.random_batch_size == 1:
            raise CommandError("--no-reranker needs a --random-batch-size from 2 on: one is the query", exit_code=2)
        if not options.no_reranker and whole == 1:
            raise CommandError("--random-input-len must be 2 at least: one token is the query's", exit_code=2)
        return self._items(options, whole, text, rng)

    def _items(
        self, options: Namespace, whole: int, text: TextSource, rng: "numpy.random.Generator"
    ) -> Iterator[WorkItem]:
        ratio = options.random_range_ratio[0]
        query_len = whole if options.no_reranker else whole // 2
        document_len = whole if options.no_reranker else whole - query_len
        for size in batch_sizes(options):
            query = text.make(length_around(query_len, ratio, rng), rng)
            count = max(1, size - 1) if options.no_reranker else size
            documents = [text.make(length_around(document_len, ratio, rng), rng) for _ in range(count)]
            reads = 1 if options.no_reranker else count
            ranking = Ranking(query.text, tuple(document.text for document in documents))
            yield WorkItem(ranking, _total([query] * reads + documents), num_inputs=count + options.no_reranker)


def _total(texts: list[CountedText]) -> int | None:
    counts = [text.num_tokens for text in texts if text.num_tokens is not None]
    return sum(counts) if len(counts) == len(texts) else None


DATASET = RandomRerank()
