"""The options of ``vllm bench serve`` about its result and its progress, and what they need of one another."""

from argparse import Namespace, _ArgumentGroup
from pathlib import Path

from vllm_bench import option_types
from vllm_bench.measure.goodput import slo
from vllm_bench.result.plot_options import add_plot_arguments, check_plot_options, draws
from vllm_cli.command import CommandError


def add_result_arguments(group: _ArgumentGroup) -> None:
    """All but the choice of metrics and percentiles."""
    group.add_argument(
        "--goodput",
        type=slo,
        nargs="+",
        action="extend",
        metavar="METRIC:MS",
        help="also report the requests a second that keep all of these limits of ttft, tpot or e2el (default: none)",
    )
    group.add_argument("--disable-tqdm", action="store_true", help="show no progress")
    group.add_argument("--save-result", action="store_true", help="write the figures to a JSON file")
    group.add_argument(
        "--save-detailed", action="store_true", help="save what each request was and took, too; saves the result"
    )
    group.add_argument(
        "--append-result", action="store_true", help="save after what the file holds, a line for each result"
    )
    group.add_argument("--result-dir", type=Path, metavar="DIR", help="folder of that file; saves (default: .)")
    group.add_argument(
        "--result-filename", metavar="FILE", help="its name; saves (default: made of load, model and date)"
    )
    group.add_argument(
        "--metadata",
        type=option_types.key_and_value,
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="more keys for the saved result, such as version=1.2 gpu=none (default: none)",
    )
    group.add_argument(
        "--plot",
        action="store_true",
        help="draw latencies and the run over time (PNG) and write a page with figures and pictures (HTML), beside the "
        "result; saves it, too, as do the other --plot options",
    )
    add_plot_arguments(group)


def check_result_options(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) for options that do not go together."""
    names = [name for name, _ in options.goodput or []]
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"--goodput: {name} has two limits", exit_code=2)
    if options.metadata and not saves(options):
        raise CommandError("--metadata needs --save-result: it is a part of the saved result", exit_code=2)
    check_plot_options(options)


def saves(options: Namespace) -> bool:
    """The result is written to a file."""
    return (
        options.save_result
        or options.save_detailed
        or options.append_result
        or options.result_dir is not None
        or options.result_filename is not None
        or draws(options)
    )
