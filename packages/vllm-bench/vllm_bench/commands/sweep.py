"""``vllm bench sweep``: many measurements, over settings of the server and of its load."""

import shlex
import signal
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

SUMMARY = "Run `vllm bench serve` over a grid of settings of the server and of its load"

_SERVE_SUMMARY = "Start `vllm serve` with each choice of settings, and measure each under each load"


def add_arguments(parser: ArgumentParser) -> None:
    """One sub-command, as the documented tool has more."""
    kinds = parser.add_subparsers(dest="sweep", metavar="{serve}", required=True)
    kinds.add_parser("serve", help=_SERVE_SUMMARY, description=f"{_SERVE_SUMMARY}.", later=_add_serve)


def run(options: Namespace) -> int:
    """Do the runs that are not done yet; 0: all are; 1: some failed or are partial; 130, 143: interrupted."""
    from vllm_bench.sweep.execute import execute
    from vllm_bench.sweep.lines import sweep_lines
    from vllm_bench.sweep.plan import plan
    from vllm_bench.sweep.store import DONE, Store, status

    runs = plan(options)
    if options.resume and options.experiment_name is None:
        raise CommandError("--resume needs --experiment-name: it says which sweep is to go on", exit_code=2)
    store = Store(options.output_dir / (options.experiment_name or time.strftime("%Y%m%d-%H%M%S")))
    if options.dry_run:
        for each in runs:
            known = "done" if options.resume and store.is_done(each) else "to do"
            command = " ".join(shlex.quote(word) for word in each.words)
            print(f"{known}: {each.name}\n  server: {shlex.join(each.target.command) or options.base_url}")
            print(f"  vllm bench serve {command}")
        return 0
    if store.used and not options.resume:
        raise CommandError(
            f"{store.folder} holds results already: go on with --resume, or choose another --experiment-name",
            exit_code=2,
        )
    store.begin()

    # Servers run in sessions of their own: were this process simply ended, they would stay behind.
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        execute(runs, store, options.base_url, options.server_ready_timeout, lambda line: print(line, flush=True))
    finally:
        signal.signal(signal.SIGTERM, previous)
        results = [result for each in runs if (result := store.get(each)) is not None]
        if results:
            store.write_table(results)
            print("\n" + "\n".join(sweep_lines(results)))
            print(f"\nsaved to {store.folder}; all runs are in {store.table_path}")
    return 0 if len(results) == len(runs) and all(status(result) == DONE for result in results) else 1


def _add_serve(parser: ArgumentParser) -> None:
    server = parser.add_argument_group("Server", "what is measured")
    server.add_argument(
        "--serve-cmd",
        metavar="COMMAND",
        help="command that starts the server, such as 'vllm serve demo'; its address is added (--host, --port)",
    )
    server.add_argument("--base-url", metavar="URL", help="measure a running server instead, as it is")
    server.add_argument(
        "--serve-params",
        type=Path,
        metavar="FILE",
        help="JSON or YAML with settings of the server: a list of objects, one for each choice; such objects by name; "
        "or one object with a list of values for each setting, of which every combination is taken",
    )
    server.add_argument(
        "--serve-vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("SETTING", "VALUE"),
        help="vary a setting of the server, such as max-num-seqs 4 16 64; may be repeated",
    )
    server.add_argument(
        "--server-ready-timeout",
        type=positive_integer,
        default=300,
        metavar="SECONDS",
        help="give up a server that is not ready (default: %(default)s)",
    )
    load = parser.add_argument_group("Load", "by what it is measured")
    load.add_argument(
        "--bench-cmd",
        default="vllm bench serve",
        metavar="COMMAND",
        help="`vllm bench serve` with the options that all runs share (default: %(default)s)",
    )
    load.add_argument(
        "--bench-params", type=Path, metavar="FILE", help="like --serve-params, with settings of the load"
    )
    load.add_argument(
        "--bench-vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("SETTING", "VALUE"),
        help="vary a setting of the load, such as max-concurrency 1 4 16; may be repeated",
    )
    load.add_argument(
        "--link-vars",
        type=_pairs,
        default=[],
        metavar="A=B,...",
        help="keep only combinations in which setting A of the server and B of the load are the same",
    )
    load.add_argument(
        "--num-runs",
        type=positive_integer,
        default=3,
        metavar="N",
        help="runs of each combination (default: %(default)s)",
    )
    result = parser.add_argument_group("Result", "a file of JSON for each run, and summary.csv")
    result.add_argument(
        "--output-dir",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of sweeps (default: %(default)s)",
    )
    result.add_argument(
        "--experiment-name", metavar="NAME", help="folder of this sweep in there (default: the date and time)"
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="go on with the sweep of that name: what is done is not repeated, what failed or was cut off is",
    )
    result.add_argument("--dry-run", action="store_true", help="only show the runs")


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [tuple(part.split("=")) for part in text.split(",") if part]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ArgumentTypeError(f"{text!r} is not A=B or A=B,C=D")
    return [(first, second) for first, second in pairs]


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
