"""Several results at once: what a higher throughput costs in latency."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_bench.plots.canvas import COLOURS, LINES, plain_log_axis, sheet
from vllm_bench.plots.words import by_numbers, curve_names, doubt, load_order, short_load, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "ttft": "Time to first token (ttft)",
    "tpot": "Time per output token (tpot)",
    "e2el": "Whole request (e2el)",
}
_MARKS = "osD^vP*X"
_LOG_FROM = 20.0
"""Ratio of the longest to the shortest time from which on the axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Point:
    """One result."""

    throughput: float
    median: float
    """ms"""
    high: float | None
    """ms of the highest percentile that all results have."""
    load: str
    sure: bool
    """It is neither partial nor distrusted."""


@dataclass(slots=True)
class Curve:
    """Results of the same settings under rising load."""

    name: str
    points: list[Point] = field(default_factory=list)


def throughput_key(results: Sequence[Mapping[str, Any]]) -> str:
    """The throughput that all of them have, of tokens if possible."""
    keys = ("output_throughput", "total_token_throughput")
    return next((key for key in keys if all(result.get(key) for result in results)), "request_throughput")


def high_percentile(results: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    """``p99``: the highest percentile of ``metric`` that all results have."""
    common = set.intersection(*({key for key in result if result[key] is not None} for result in results))
    found = [
        float(match[1]) for key in common if (match := re.fullmatch(rf"p(\d+(?:\.\d+)?)_{metric}_ms", key)) is not None
    ]
    return f"p{max(found):g}" if found and max(found) > 50 else None


def curves(results: Sequence[Mapping[str, Any]], metric: str) -> list[Curve]:
    """A curve for each combination of settings, its points in the order of their load.

    A result without the metric's times has no point.
    """
    key, high = throughput_key(results), high_percentile(results, metric)
    found: dict[str, Curve] = {}
    for result, name in sorted(zip(results, curve_names(results), strict=True), key=lambda pair: load_order(pair[0])):
        curve = found.setdefault(name, Curve(name))
        median, throughput = result.get(f"median_{metric}_ms"), result.get(key)
        if median is None or throughput is None:
            continue
        above = result[f"{high}_{metric}_ms"] if high is not None else None
        curve.points.append(Point(throughput, median, above, short_load(result), doubt(result) is None))
    return sorted(found.values(), key=lambda curve: by_numbers(curve.name))


def means(points: Sequence[Point]) -> list[Point]:
    """Where a curve goes through: the mean of neighbouring points of the same load, as of runs made again."""
    found = []
    for load, same in itertools.groupby(points, key=lambda point: point.load):
        runs = list(same)
        highs = [point.high for point in runs if point.high is not None]
        found.append(
            Point(
                sum(point.throughput for point in runs) / len(runs),
                sum(point.median for point in runs) / len(runs),
                sum(highs) / len(highs) if highs else None,
                load,
                all(point.sure for point in runs),
            )
        )
    return found


def draw(results: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """A panel for each metric; None for less than two results or without times."""
    if len(results) < 2:
        return None
    panels_of = {metric: curves(results, metric) for metric in _TITLES}
    metrics = [metric for metric, found in panels_of.items() if any(len(curve.points) for curve in found)]
    if not metrics:
        return None
    models = list(dict.fromkeys(str(result.get("model_id")) for result in results))
    unsure = sum(doubt(result) is not None for result in results)
    lines = [f"{shortened(', '.join(models))} · {len(results)} results"]
    lines.append("The number at a point is its load: requests at a time; with /s, requests sent in a second")
    if any(len(means(curve.points)) < len(curve.points) for curve in panels_of[metrics[0]]):
        lines.append("Small points are single runs, large ones their means")
    if unsure:
        lines.append(f"Hollow points ({unsure}): the run was partial, or its client did not keep up")
    unit = {"request_throughput": "requests/s", "output_throughput": "output tokens/s"}.get(
        throughput_key(results), "tokens in and out/s"
    )
    size = (4.3 * len(metrics) + 0.4, 4.0 + 0.2 * len(panels_of[metrics[0]]))
    with sheet("Latency against throughput", lines, 1, len(metrics), size) as (figure, panels):
        for axes, metric in zip(panels[0], metrics, strict=True):
            _panel(axes, panels_of[metric], high_percentile(results, metric))
            axes.set_title(_TITLES[metric])
            axes.set_xlabel(unit)
            axes.set_ylabel("milliseconds")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2)
    return figure


def _panel(axes: Any, found: Sequence[Curve], high: str | None) -> None:
    for number, curve in enumerate(found):
        colour, mark = COLOURS[number % len(COLOURS)], _MARKS[number % len(_MARKS)]
        line = LINES[number // len(COLOURS) % len(LINES)]
        name = f"{curve.name}: " if curve.name else ""
        through = means(curve.points)
        x = [point.throughput for point in through]
        ways: list[tuple[str, list[Any], dict[str, Any]]] = [
            ("median", [point.median for point in through], {"linestyle": line})
        ]
        if high is not None:
            ways.append((high, [point.high for point in through], {"linestyle": ":", "linewidth": 1.2, "alpha": 0.75}))
        for what, y, how in ways:
            axes.plot(x, y, color=colour, **how)
            axes.plot([], [], color=colour, marker=mark, markersize=6, label=f"{name}{what}", **how)
        again = len(curve.points) > len(through)
        for point, size in [*((point, 3) for point in curve.points if again), *((point, 6) for point in through)]:
            values = [point.median] + ([point.high] if point.high is not None else [])
            fill = colour if point.sure else "white"
            how = {"color": colour, "markerfacecolor": fill, "markersize": size, "alpha": 0.45 if size < 6 else 1.0}
            axes.plot([point.throughput] * len(values), values, mark, **how)
        for point in through:
            place = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 8, "zorder": 6}
            place["bbox"] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            axes.annotate(point.load, (point.throughput, point.median), color=colour, **place)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlim(left=0)
    times = [value for curve in found for point in curve.points for value in (point.median, point.high) if value]
    if times and max(times) / min(times) > _LOG_FROM:
        axes.set_yscale("log")
        plain_log_axis(axes.yaxis, min(times), max(times))
    else:
        axes.set_ylim(bottom=0)
