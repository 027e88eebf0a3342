"""A workload as ``vllm bench serve`` would make it from a command line, without a server."""

import itertools
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from vllm_bench import endpoints, serve_options
from vllm_bench.workload.build import build
from vllm_bench.workload.item import Messages, WorkItem
from vllm_bench.workload.text import TextSource
from vllm_bench.workload.words import UncountedWords


def rendered(messages: Messages) -> list[int]:
    """A chat template of the tests: a frame of 1 and 2 around the bytes of the messages."""
    return [1, *"".join(message["content"] for message in messages).encode(), 2]


def options_of(*arguments: object) -> Namespace:
    """The parsed and checked options of a command line."""
    parser = ArgumentParser()
    serve_options.add_arguments(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    serve_options.check(options)
    return options


def items_of(
    *arguments: object,
    text: TextSource | None = None,
    render: Callable[[Messages], list[int]] = rendered,
    most: int = 10_000,
) -> list[WorkItem]:
    """The items in their order, at most so many."""
    made, rest = build(options_of(*arguments), text or UncountedWords(), render)
    return list(itertools.islice(itertools.chain(made, rest), most))


def bodies_of(*arguments: object, text: TextSource | None = None) -> list[bytes]:
    """The bodies of the first requests; of a conversation, with answers that tell their turn."""
    endpoint = endpoints.load(options_of(*arguments).backend)
    bodies = []
    for item in items_of(*arguments, text=text):
        turn: WorkItem | None = item
        while turn is not None:
            bodies.append(json.dumps(endpoint.body(turn, "m", {})).encode())
            turn = turn.follow_up(f"answer {len(bodies)}") if turn.follow_up is not None else None
    return bodies
