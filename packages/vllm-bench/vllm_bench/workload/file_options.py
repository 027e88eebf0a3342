"""What datasets of files have in common: the file, the order of its items, and what comes after the last."""

import itertools
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vllm_bench.workload.item import WorkItem
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    import numpy

_Line = TypeVar("_Line")


def add_arguments(parser: ArgumentParser | _ArgumentGroup) -> None:
    """The options that these datasets share."""
    parser.add_argument("--dataset-path", type=Path, metavar="FILE", help="file of the dataset, where it needs one")
    parser.add_argument(
        "--no-oversample",
        action="store_true",
        help="send less than --num-prompts where a file has less (default: again from its first)",
    )
    parser.add_argument(
        "--disable-shuffle",
        action="store_true",
        help="keep the order of the file; prefix_repetition: its prefixes in turn (default: an order by --seed)",
    )
    parser.add_argument(
        "--skip-chat-template",
        action="store_true",
        help="custom, spec_bench, with --backend openai or vllm: send a prompt as it is (default: as a user's message, "
        "in the chat template of --tokenizer's folder, else of the server's /tokenize)",
    )


def dataset_file(options: Namespace) -> Path:
    """The file of the dataset.

    Raises:
        CommandError: (exit code 2) none is named, or an option that is for made-up prompts.
    """
    if options.dataset_path is None:
        raise CommandError(f"--dataset-name {options.dataset_name} needs --dataset-path FILE", exit_code=2)
    if options.input_len is not None:
        raise CommandError(
            f"--input-len: the prompts of {options.dataset_name} have the lengths that the file gives them", exit_code=2
        )
    path: Path = options.dataset_path
    return path


def ordered(lines: Sequence[_Line], options: Namespace, rng: "numpy.random.Generator") -> Iterator[_Line]:
    """``lines`` in a random order, or as they are with ``--disable-shuffle``."""
    if options.disable_shuffle:
        return iter(lines)
    return (lines[number] for number in rng.permutation(len(lines)).tolist())


def oversampled(items: Iterator[WorkItem], options: Namespace) -> Iterator[WorkItem]:
    """``items``, and again from the first after the last, unless ``--no-oversample``.

    Raises:
        CommandError: (exit code 2) there are none.
    """
    items = required(items, options)
    return items if options.no_oversample else itertools.cycle(items)


def required(items: Iterator[WorkItem], options: Namespace) -> Iterator[WorkItem]:
    """``items``, which must be some.

    Raises:
        CommandError: (exit code 2) there are none.
    """
    first = next(items, None)
    if first is None:
        raise CommandError(
            f"--dataset-path {options.dataset_path} holds nothing that {options.dataset_name} can send", exit_code=2
        )
    return itertools.chain([first], items)
