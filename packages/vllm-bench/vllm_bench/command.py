"""``vllm bench``: the command that this wheel adds to ``vllm``, and its choice of benchmarks."""

from argparse import ArgumentParser, Namespace

from vllm_bench.commands import serve, startup
from vllm_cli.command import Command

_BENCHMARKS = {
    "serve": serve,
    "startup": startup,
}


def add_arguments(parser: ArgumentParser) -> None:
    """One sub-command for each benchmark, with its own options."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="{" + ",".join(_BENCHMARKS) + "}", required=True)
    for name, module in _BENCHMARKS.items():
        summary = module.SUMMARY
        benchmark = benchmarks.add_parser(name, help=summary, description=f"{summary}.", allow_abbrev=False)
        module.add_arguments(benchmark)


def run(options: Namespace) -> int:
    """Run the chosen benchmark; returns the exit code."""
    code: int = _BENCHMARKS[options.benchmark].run(options)
    return code


COMMAND = Command("Measure a server: its answers under load, or its start-up", add_arguments, run)
