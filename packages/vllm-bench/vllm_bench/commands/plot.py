"""``vllm bench plot``: pictures and a page from saved results."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from vllm_bench.result.plot_options import add_plot_arguments, check_plot_options
from vllm_cli.command import CommandError

SUMMARY = "Draw saved results of `bench serve`: latencies, throughput against latency, the run over time"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm bench plot``."""
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="saved results, best with --save-detailed; several are compared in one picture, as those of a sweep",
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="PATH",
        help="what the names of the files begin with (default: the result's name, or `results` beside the first)",
    )
    add_plot_arguments(parser.add_argument_group("More pictures", "beside those that are always drawn"))
    parser.set_defaults(plot=True)


def run(options: Namespace) -> int:
    """Draw, and say what was written and what could not be drawn."""
    check_plot_options(options)

    from vllm_bench.plots.files import base_of, draw
    from vllm_bench.plots.saved_requests import saved_requests
    from vllm_bench.result.read import read

    read_from = [(path, result) for path in options.results for result in read(path)]
    # Of a run of a sweep that came to nothing only that is known.
    lost = [path for path, result in read_from if "sweep" in result and "duration" not in result]
    read_from = [(path, result) for path, result in read_from if "sweep" not in result or "duration" in result]
    for path, result in read_from:
        if "duration" not in result or "completed" not in result:
            raise CommandError(f"{path} holds no result of vllm bench serve", exit_code=2)
    if not read_from:
        raise CommandError("none of these runs came to a result", exit_code=2)
    first = options.results[0]
    base = options.output or (base_of(first) if len(options.results) == 1 else first.with_name("results"))
    try:
        drawn = draw([result for _, result in read_from], base, options)
    except (TypeError, ValueError, AttributeError) as error:
        raise CommandError(f"the results hold values that are none of a measurement: {error}", exit_code=2) from error
    print("\n".join(map(str, drawn)))
    bare = dict.fromkeys(str(path) for path, result in read_from if saved_requests(result) is None)
    if bare:
        print(f"note: saved without --save-detailed, so that not all can be drawn: {', '.join(bare)}")
    if lost:
        print(f"note: these runs failed and have nothing to draw: {', '.join(map(str, lost))}")
    return 0
