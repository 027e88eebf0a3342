"""The options about pictures, of ``vllm bench serve`` and ``vllm bench plot``."""

import importlib.util
from argparse import ArgumentTypeError, Namespace, _ArgumentGroup

from vllm_cli.command import CommandError

_THRESHOLDS = "25,50"


def add_plot_arguments(group: _ArgumentGroup) -> None:
    """``--plot-timeline`` and its kin; ``--plot`` is each command's own."""
    group.add_argument(
        "--plot-timeline",
        action="store_true",
        help="write a page with a row for each request, coloured by its waits; best for short runs",
    )
    group.add_argument(
        "--timeline-itl-thresholds",
        type=_thresholds,
        default=_thresholds(_THRESHOLDS),
        metavar="MS,MS",
        help="of --plot-timeline: gaps below the first are green, below the second orange, the others red "
        f"(default: {_THRESHOLDS})",
    )
    group.add_argument(
        "--plot-dataset-stats",
        action="store_true",
        help="draw how many tokens prompts, answers and both together had, as PNG",
    )


def draws(options: Namespace) -> bool:
    """Some picture is wanted."""
    return bool(options.plot or options.plot_timeline or options.plot_dataset_stats)


def check_plot_options(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) where a picture is wanted and ``matplotlib`` is missing.

    It is looked for, not loaded: that takes its time, and is done after the measurement.
    """
    for option in ("plot", "plot_dataset_stats"):
        if getattr(options, option) and importlib.util.find_spec("matplotlib") is None:
            raise CommandError(f'--{option.replace("_", "-")} needs: pip install "vllm-bench[plots]"', exit_code=2)


def _thresholds(text: str) -> list[float]:
    """``25,50``: two rising numbers from 0 on."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 2 or not 0 <= found[0] <= found[1] < float("inf"):
        raise ArgumentTypeError(f"{text!r} are not two rising numbers of milliseconds such as 25,50")
    return found
