"""``vllm bench throughput``: how fast many requests go through the engine, without a server."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from vllm_bench.offline.settings import NOT_PROFILED, add_engine_arguments, mark_common, run_with_engine
from vllm_bench.option_types import count
from vllm_bench.workload.dataset import add_dataset_arguments
from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

SUMMARY = "Send many requests through the engine at once, without a server, and report throughput"

_OTHERS = {
    "hf": "it would measure transformers; run that by a script of its own",
    "mii": "DeepSpeed-MII is another engine; run it by a script of its own",
}
"""Documented backends that are refused, and why."""

_COMMON = {
    *("--backend", "--async-engine", "--num-prompts", "--output-json"),
    *("--dataset-name", "--dataset-path", "--input-len", "--output-len"),
}
"""What the short page of ``--help`` shows."""


def add_arguments(parser: ArgumentParser) -> None:
    """Its own options, and those of the engine."""
    group = parser.add_argument_group("Throughput", "the engine's side, and how many requests")
    group.add_argument(
        "--backend",
        choices=("vllm", "vllm-chat", *_OTHERS),
        default="vllm",
        help="prompts, or conversations; hf and mii are refused (default: %(default)s)",
    )
    group.add_argument(
        "--async-engine",
        action="store_true",
        help="the engine of the server, in a process of its own, instead of that in this one",
    )
    group.add_argument(
        "--prequeue-requests",
        action="store_true",
        help="all prompts are ready before the first step, as they always are here without --async-engine",
    )
    group.add_argument(
        "--num-prompts", type=positive_integer, default=1000, metavar="N", help="requests (default: %(default)s)"
    )
    group.add_argument(
        "--num-warmups",
        type=count,
        default=0,
        metavar="N",
        help="other requests of the dataset before the clock starts (default: %(default)s)",
    )
    group.add_argument(
        "--n", type=positive_integer, default=1, metavar="N", help="answers to each prompt (default: %(default)s)"
    )
    group.add_argument("--disable-detokenize", action="store_true", help="do not turn tokens into text")
    group.add_argument("--profile", action="store_true", help="refused: profile a server, by --profiler-config")
    group.add_argument("--output-json", type=Path, metavar="FILE", help="also write the figures to a file")

    workload = parser.add_argument_group(
        "Workload", "what the requests hold; --seed makes it, too. --dataset-path alone means sharegpt"
    )
    workload.add_argument(
        "--input-len", type=positive_integer, metavar="TOKENS", help="of a prompt (default: the dataset's)"
    )
    workload.add_argument(
        "--output-len", type=positive_integer, metavar="TOKENS", help="of an answer (default: the dataset's)"
    )
    add_dataset_arguments(workload)
    workload.add_argument(
        "--prefix-len",
        type=count,
        dest="random_prefix_len",
        metavar="TOKENS",
        default=0,
        help="the same as --random-prefix-len",
    )
    mark_common(parser, _COMMON)
    add_engine_arguments(parser, "throughput")


def run(options: Namespace) -> int:
    """Measure and report; returns the exit code."""
    _check(options)
    if options.prompt_file is not None:
        options.dataset_name = "prompt-file"
    elif options.dataset_path is not None and options.dataset_name == "random":
        options.dataset_name = "sharegpt"  # as documented: random prompts have no file

    def work(engine: dict[str, Any]) -> int:
        from vllm_bench.offline.throughput import measure_throughput, throughput_lines
        from vllm_bench.result.fingerprint import engine_fingerprint
        from vllm_bench.result.save import check_place, save

        if options.output_json is not None:
            check_place(options.output_json)
        result = measure_throughput(options, engine)
        result["fingerprint"] = engine_fingerprint(options, engine, result["seed"])
        print("\n".join(throughput_lines(result)))
        if options.output_json is not None:
            save(result, options.output_json)
        return 0

    return run_with_engine("throughput", options, work)


def _check(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) for what is not served."""
    if options.backend in _OTHERS:
        raise CommandError(f"--backend {options.backend}: {_OTHERS[options.backend]}", exit_code=2)
    if options.profile:
        raise CommandError(f"--profile: {NOT_PROFILED}", exit_code=2)
    if options.async_engine and options.backend != "vllm":
        raise CommandError(f"--async-engine takes prompts: it needs --backend vllm, not {options.backend}", exit_code=2)
    if options.prequeue_requests:
        if options.async_engine:
            raise CommandError("--prequeue-requests: with --async-engine requests come one by one", exit_code=2)
        print(
            "--prequeue-requests changes nothing: all prompts are ready before the first step anyway", file=sys.stderr
        )
