"""Pictures and pages as files beside a result."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_bench.plots import cdf, dataset_stats, throughput, timeline
from vllm_bench.plots.canvas import png
from vllm_bench.plots.report import report
from vllm_bench.plots.request_timeline import request_timeline
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]


def base_of(path: Path) -> Path:
    """What the names of the pictures of a result's file begin with."""
    return path.with_suffix("") if path.suffix in (".json", ".jsonl") else path


def draw(results: Sequence[Result], base: Path, options: Namespace) -> list[Path]:
    """Write what ``options`` ask for (see ``result/plot_options.py``); returns the files.

    A picture for which the results have no data is left out.

    Raises:
        CommandError: a file cannot be written, or (exit code 2) ``matplotlib`` is not installed.
    """
    files: dict[str, bytes] = {}
    if options.plot:
        drawn: dict[str, Figure | None] = {"throughput": throughput.draw(results), "cdf": cdf.draw(results)}
        if len(results) == 1:
            drawn["timeline"] = timeline.draw(results[0])
        figures = {kind: figure for kind, figure in drawn.items() if figure is not None}
        files |= {f".{kind}.png": png(figure) for kind, figure in figures.items()}
        files[".html"] = report(results, figures).encode()
    for number, result in enumerate(results, 1):
        which = f".{number}" if len(results) > 1 else ""
        if options.plot_timeline and (text := request_timeline(result, options.timeline_itl_thresholds)):
            files[f"{which}.timeline.html"] = text.encode()
        if options.plot_dataset_stats and (figure := dataset_stats.draw(result)):
            files[f"{which}.dataset_stats.png"] = png(figure)
    return [_write(base.with_name(base.name + ending), content) for ending, content in files.items()]


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"the picture cannot be saved: {error}") from error
    return path
