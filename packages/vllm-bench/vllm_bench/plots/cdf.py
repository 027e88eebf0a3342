"""Latency curves: which share of the requests (or gaps) took no longer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import numpy.typing

from vllm_bench.plots.canvas import COLOURS, LINES, plain_log_axis, sheet
from vllm_bench.plots.saved_requests import saved_requests
from vllm_bench.plots.words import by_numbers, doubt, measured, names, names_of_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = numpy.typing.NDArray[numpy.float64]

MOST_CURVES = len(COLOURS)
"""More cannot be told apart."""

_TITLES = {
    "ttft": ("Time to first token (ttft)", "requests"),
    "tpot": ("Time per output token after the first (tpot)", "requests"),
    "itl": ("Gap between chunks (itl)", "gaps"),
    "e2el": ("Whole request (e2el)", "requests"),
}
_MOST_POINTS = 2000
_LOG_FROM, _LOG_RANGE = 30.0, 1e5
"""Ratio of the 99.9th to the 1st percentile from which on the axis is logarithmic, and what it spans below the
former at most."""


def latencies(result: Mapping[str, Any]) -> dict[str, Floats]:
    """Metric -> the times of the completed requests in ms, unordered; only metrics that have any.

    A result without details has ``e2el`` alone, and that only if no request failed: it does not tell which.
    """
    requests = saved_requests(result)
    if requests is None:
        whole = result.get("latencies") if not result.get("failed") else None
        found: dict[str, list[float]] = {"e2el": whole or []}
    else:
        done = [request for request in requests if not request.error]
        found = {
            "ttft": [request.ttft for request in done if request.ttft is not None],
            "tpot": [tpot for request in done if (tpot := request.tpot) is not None],
            "itl": [gap for request in done for gap in request.itls],
            "e2el": [request.latency for request in done],
        }
    return {name: 1e3 * numpy.asarray(times, dtype=numpy.float64) for name, times in found.items() if times}


def cumulative(values: Floats) -> tuple[Floats, Floats]:
    """The ordered values, and the share in percent of all that are not above each; from 0 %, which has the smallest.

    Of many values only some are given; their shares are exact.
    """
    ordered = numpy.sort(values)
    kept = numpy.unique(numpy.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_POINTS)).astype(numpy.int64))
    return numpy.concatenate([ordered[:1], ordered[kept]]), numpy.concatenate([[0.0], 100 * (kept + 1) / len(ordered)])


@dataclass(frozen=True, slots=True)
class Group:
    """Results of one curve."""

    name: str
    results: list[Mapping[str, Any]]

    @property
    def label(self) -> str:
        """For the legend: its name, how many runs it is of, and whether to believe them."""
        number, doubtful = len(self.results), sum(doubt(result) is not None for result in self.results)
        runs = f" ({number} runs)" if number > 1 else ""
        which = "" if doubtful == number else f"{doubtful} of them "
        return f"{self.name}{runs}" + (f" ({which}not to be trusted)" if doubtful else "")


def groups(results: Sequence[Mapping[str, Any]]) -> list[Group]:
    """A group for each result, but one for all runs of a sweep with the same settings and load."""
    found: dict[str, Group] = {}
    for result, own, shared in zip(results, names(results), names_of_settings(results), strict=True):
        name = shared if "sweep" in result else own
        key = name if "sweep" in result else f"{own} {len(found)}"
        found.setdefault(key, Group(name, [])).results.append(result)
    in_order = list(found.values())
    return sorted(in_order, key=lambda group: by_numbers(group.name)) if len(in_order) < len(results) else in_order


def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """The ``latencies`` of several results as one."""
    of_each = [latencies(result) for result in results]
    return {
        name: numpy.concatenate([times[name] for times in of_each if name in times])
        for name in _TITLES
        if any(name in times for times in of_each)
    }


def draw(results: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """A panel for each metric, a curve for each result (of the first few); None where no result has times."""
    everything = groups([result for result in results if latencies(result)])
    left_out, shown = everything[MOST_CURVES:], everything[:MOST_CURVES]
    found = [together(group.results) for group in shown]
    metrics = [name for name in _TITLES if any(name in times for times in found)]
    if not metrics:
        return None
    alone = shown[0].results[0] if len(shown) == len(shown[0].results) == 1 else None
    lines = [measured(alone)] if alone is not None else [f"{sum(len(group.results) for group in shown)} results"]
    if left_out:
        number = sum(len(group.results) for group in left_out)
        lines.append(f"{number} more results are left out: so many curves could not be told apart")
    lines += list(filter(None, [doubt(alone)])) if alone is not None else []
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    legend_rows = -(-len(shown) // 2) if len(shown) > 1 else 0
    size = (5.2 * columns + 0.4, 3.1 * rows + 0.2 * legend_rows)
    with sheet("Latency distributions", lines, rows, columns, size) as (figure, panels):
        for axes, name in zip(panels.flat, metrics, strict=False):
            _panel(axes, name, [times.get(name) for times in found])
        for axes in list(panels.flat)[len(metrics) :]:
            axes.set_visible(False)
        if len(shown) > 1:
            curves = [axes_line for axes_line in panels.flat[0].get_lines() if axes_line.get_gid() == "curve"]
            figure.legend(curves, [group.label for group in shown], loc="outside lower left", ncols=columns)
    return figure


def _panel(axes: Any, name: str, curves: Sequence[Floats | None]) -> None:
    title, counted = _TITLES[name]
    present = [values for values in curves if values is not None]
    everything = numpy.concatenate(present)
    for number, values in enumerate(curves):
        x, share = cumulative(values) if values is not None else (numpy.array([]), numpy.array([]))
        style = {"color": COLOURS[number], "linestyle": LINES[number % len(LINES)] if len(curves) > 1 else "-"}
        axes.step(x, share, where="post", gid="curve", **style)
        if values is not None and len(curves) == 1:
            for percent, mark in ((50, "o"), (90, "s"), (99, "D")):
                at = numpy.percentile(values, percent)
                axes.plot(at, percent, mark, color=COLOURS[1], markersize=6, label=f"p{percent}  {_ms(at)} ms")
    positive = everything[everything > 0]
    low, high = numpy.percentile(positive, [1, 99.9]) if len(positive) else (1.0, 1.0)
    if high / low > _LOG_FROM:
        # Chunks that were read at once have no gap at all: their curve comes in from the left.
        axes.set_xscale("log")
        left, right = max(positive.min(), low / 3, high / _LOG_RANGE) * 0.9, positive.max() * 1.1
        plain_log_axis(axes.xaxis, left, right)
        axes.set_xlim(left, right)
    else:
        axes.set_xlim(0, everything.max() * 1.05 or 1)
    axes.set_title(title)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel(f"share of {counted} (%)")
    axes.set_ylim(0, 102)
    if len(curves) == 1:
        # The upper left is free where the curve rises late.
        middle = axes.transAxes.inverted().transform(axes.transData.transform((numpy.median(everything), 50)))[0]
        axes.legend(loc="upper left" if middle > 0.6 else "lower right", handlelength=1.0)


def _ms(value: float) -> str:
    """About three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
