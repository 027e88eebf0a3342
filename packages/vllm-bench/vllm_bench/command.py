"""``vllm bench``: the command that this wheel adds to ``vllm``, and its choice of benchmarks."""

from argparse import ArgumentParser, Namespace

from vllm_bench.commands import compare, latency, plot, serve, startup, sweep, throughput
from vllm_cli.command import Command

_BENCHMARKS = {
    "serve": serve,
    "latency": latency,
    "throughput": throughput,
    "startup": startup,
    "compare": compare,
    "plot": plot,
    "sweep": sweep,
}


def add_arguments(parser: ArgumentParser) -> None:
    """One sub-command for each benchmark; its options are added when it is called, as some need the engine's wheel."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="{" + ",".join(_BENCHMARKS) + "}", required=True)
    for name, module in _BENCHMARKS.items():
        summary = module.SUMMARY
        benchmarks.add_parser(name, help=summary, description=f"{summary}.", later=module.add_arguments)


def run(options: Namespace) -> int:
    """Run the chosen benchmark; returns the exit code."""
    code: int = _BENCHMARKS[options.benchmark].run(options)
    return code


COMMAND = Command("Measure a server: its answers under load, or its start-up", add_arguments, run)
