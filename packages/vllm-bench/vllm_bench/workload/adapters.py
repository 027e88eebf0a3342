"""``--lora-modules``: each request of the workload names one of several adapters as its model."""

import itertools
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from dataclasses import replace

from vllm_bench.workload.item import WorkItem
from vllm_cli.command import CommandError

RANDOM, IN_TURN = "random", "round-robin"


def add_arguments(parser: ArgumentParser | _ArgumentGroup) -> None:
    """``--lora-...``."""
    parser.add_argument(
        "--lora-modules",
        nargs="+",
        metavar="NAME",
        help="adapters that the server has; each request names one of them as its model (default: none)",
    )
    parser.add_argument(
        "--lora-assignment",
        choices=(RANDOM, IN_TURN),
        default=RANDOM,
        help="which one: drawn by --seed, or each in its turn (default: %(default)s)",
    )


def check(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) for an assignment of nothing."""
    if options.lora_assignment != RANDOM and not options.lora_modules:
        raise CommandError("--lora-assignment needs --lora-modules: there is nothing to assign", exit_code=2)


def with_adapters(items: Iterator[WorkItem], options: Namespace) -> Iterator[WorkItem]:
    """``items``, each with its adapter; all turns of a conversation have the same one."""
    names: list[str] = options.lora_modules or []
    if not names:
        return items
    from vllm_bench.workload.seeds import generator  # numpy, which the help can do without

    rng = generator(options.seed, "adapters")
    turns = itertools.cycle(names)
    chosen = (
        names[rng.integers(len(names))] if options.lora_assignment == RANDOM else next(turns) for _ in iter(int, 1)
    )
    return (_with_adapter(item, name) for item, name in zip(items, chosen, strict=False))


def _with_adapter(item: WorkItem, name: str) -> WorkItem:
    go_on = item.follow_up
    if go_on is not None:
        before = go_on

        def go_on(answer: str) -> WorkItem | None:
            following = before(answer)
            return None if following is None else _with_adapter(following, name)

    return replace(item, extra={**item.extra, "model": name}, follow_up=go_on)
