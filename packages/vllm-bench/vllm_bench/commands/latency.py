"""``vllm bench latency``: how long the engine takes for one batch."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from vllm_bench.offline.settings import NOT_PROFILED, add_engine_arguments, mark_common, run_with_engine
from vllm_bench.option_types import count
from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

SUMMARY = "Time one batch through the engine, without a server, and report the latencies"

_REFUSED = {
    "profile": f"--profile: {NOT_PROFILED}",
    "use_beam_search": "--use-beam-search: this version's engine has no beam search",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Its own options, and those of the engine."""
    group = parser.add_argument_group("Latency", "the batch, and how often it is run")
    group.add_argument(
        "--input-len", type=positive_integer, default=32, metavar="TOKENS", help="of a prompt (default: %(default)s)"
    )
    group.add_argument(
        "--output-len", type=positive_integer, default=128, metavar="TOKENS", help="of an answer (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=positive_integer, default=8, metavar="N", help="requests at once (default: %(default)s)"
    )
    group.add_argument(
        "--n", type=positive_integer, default=1, metavar="N", help="answers to each prompt (default: %(default)s)"
    )
    group.add_argument("--use-beam-search", action="store_true", help="refused: the engine has no beam search")
    group.add_argument(
        "--num-iters-warmup",
        type=count,
        default=10,
        metavar="N",
        help="runs before the measured (default: %(default)s)",
    )
    group.add_argument(
        "--num-iters", type=positive_integer, default=30, metavar="N", help="measured runs (default: %(default)s)"
    )
    group.add_argument("--profile", action="store_true", help="refused: profile a server, by --profiler-config")
    group.add_argument("--output-json", type=Path, metavar="FILE", help="also write the figures to a file")
    group.add_argument("--disable-detokenize", action="store_true", help="do not turn tokens into text")
    mark_common(parser, ("--input-len", "--output-len", "--batch-size", "--num-iters", "--output-json"))
    add_engine_arguments(parser, "latency")


def run(options: Namespace) -> int:
    """Measure and report; returns the exit code."""
    for name, reason in _REFUSED.items():
        if getattr(options, name):
            raise CommandError(reason, exit_code=2)

    def work(engine: dict[str, Any]) -> int:
        from vllm_bench.offline.latency import latency_lines, measure_latency
        from vllm_bench.result.fingerprint import engine_fingerprint
        from vllm_bench.result.save import check_place, save

        if options.output_json is not None:
            check_place(options.output_json)
        result = measure_latency(options, engine)
        result["fingerprint"] = engine_fingerprint(options, engine, result["seed"])
        print("\n".join(latency_lines(result)))
        if options.output_json is not None:
            save(result, options.output_json)
        return 0

    return run_with_engine("latency", options, work)
