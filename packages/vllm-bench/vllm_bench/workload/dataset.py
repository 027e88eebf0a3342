"""Where prompts come from: one module for each ``--dataset-name``."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from vllm_bench.workload import file_options, trace_options
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.text import TextSource

if TYPE_CHECKING:
    import numpy

DATASETS = {
    "random": "vllm_bench.workload.random_prompts",
    "random-rerank": "vllm_bench.workload.random_rerank",
    "prompt-file": "vllm_bench.workload.prompt_file",
    "sharegpt": "vllm_bench.workload.sharegpt",
    "custom": "vllm_bench.workload.custom",
    "prefix_repetition": "vllm_bench.workload.prefix_repetition",
    "burstgpt": "vllm_bench.workload.burstgpt",
    "timed_trace": "vllm_bench.workload.timed_trace",
    "spec_bench": "vllm_bench.workload.spec_bench",
    "multi_turn": "vllm_bench.workload.multi_turn",
}
"""Name of a dataset -> the module that holds its ``DATASET``."""


class Dataset(Protocol):
    """One kind of workload. What it needs of the command line it declares itself, under its own names."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """The options that are this dataset's alone."""

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """The items in their order, without end where they are made up; their offsets are left to the request rate,
        unless the data bring their own.

        Raises:
            CommandError: (exit code 2) a file cannot be read, with its name and line.
        """


def load(name: str) -> Dataset:
    """The dataset of that name, one of ``DATASETS``."""
    dataset: Dataset = import_module(DATASETS[name]).DATASET
    return dataset


def add_dataset_arguments(parser: ArgumentParser | _ArgumentGroup) -> None:
    """``--dataset-name``, what several datasets share, and the options of every one."""
    parser.add_argument(
        "--dataset-name", choices=sorted(DATASETS), default="random", help="kind of prompts (default: %(default)s)"
    )
    file_options.add_arguments(parser)
    trace_options.add_arguments(parser)
    for name in DATASETS:
        load(name).add_arguments(parser)
