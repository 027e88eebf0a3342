"""``--plot-dataset-stats``: how long prompts and answers were."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import numpy.typing

from vllm_bench.plots.canvas import COLOURS, GREY, room_above, sheet
from vllm_bench.plots.saved_requests import saved_requests
from vllm_bench.plots.words import measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ints = numpy.typing.NDArray[numpy.int64]

_MOST_BINS = 30
_MOST_BARS = 250


def lengths(result: Mapping[str, Any]) -> tuple[Ints, Ints] | None:
    """Tokens of the prompts and of the answers of completed requests, in the order of their start.

    Prompts whose tokens nobody counted have 0. None for a result without details or without such requests.
    """
    done = [request for request in saved_requests(result) or [] if not request.error]
    if not done:
        return None
    return (
        numpy.array([request.input_len or 0 for request in done]),
        numpy.array([request.output_len for request in done]),
    )


def bin_edges(values: Ints) -> Sequence[float]:
    """Of a histogram of whole numbers: every bin holds equally many of them, so that none looks fuller by chance."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // _MOST_BINS)
    return [low - 0.5 + width * number for number in range((high - low) // width + 2)]


def grouped(values: Ints, group: int) -> numpy.typing.NDArray[numpy.float64]:
    """Means of each ``group`` neighbouring values; the last may be of fewer."""
    begins = numpy.arange(0, len(values), group)
    return numpy.add.reduceat(values, begins) / numpy.diff(begins, append=len(values))


def draw(result: Mapping[str, Any]) -> "Figure | None":
    """Histograms of prompts, answers and both, and each request's tokens; None where ``lengths`` is."""
    found = lengths(result)
    if found is None:
        return None
    inputs, outputs = found
    lines = [f"{measured(result)} · dataset {result.get('dataset_name', 'unknown')}"]
    with sheet("Lengths of the requests", lines, 2, 2, (10.4, 6.2)) as (figure, panels):
        _histogram(panels[0, 0], inputs, "Prompt", COLOURS[0])
        _histogram(panels[0, 1], outputs, "Answer", COLOURS[1])
        _histogram(panels[1, 0], inputs + outputs, "Prompt and answer", COLOURS[2])
        axes = panels[1, 1]
        group = -(-len(inputs) // _MOST_BARS)
        bars = grouped(inputs, group), grouped(outputs, group)
        edges = 0.5 + group * numpy.arange(len(bars[0]) + 1)
        axes.stairs(bars[0], edges, fill=True, linewidth=0, color=COLOURS[0], label="prompt")
        how = {"baseline": bars[0], "fill": True, "linewidth": 0}
        axes.stairs(bars[0] + bars[1], edges, color=COLOURS[1], label="answer", **how)
        axes.set_title("Each request" if group == 1 else f"Means of each {group} requests")
        axes.set_xlabel("request, in the order of their start")
        axes.set_ylabel("tokens")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(0.5, len(inputs) + 0.5)
        room_above(axes, 0.2)
        axes.legend(loc="upper right", ncols=2)
    return figure


def _histogram(axes: Any, values: Ints, what: str, colour: str) -> None:
    counts, edges = numpy.histogram(values, bin_edges(values))
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.85)
    mean = float(values.mean())
    axes.axvline(mean, color=GREY, linestyle="--", linewidth=1.3, label=f"mean {mean:,.1f}")
    if len(edges) == 2:  # all are equal: a bar as broad as the picture would be read as a range
        axes.set_xlim(edges[0] - 5, edges[1] + 5)
    axes.set_title(what)
    axes.set_xlabel("tokens")
    axes.set_ylabel("requests")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    room_above(axes, 0.2)
    axes.legend(loc="upper right")
