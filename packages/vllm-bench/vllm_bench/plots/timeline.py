"""How a run went on: requests under way, and tokens in a second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import numpy.typing

from vllm_bench.plots.canvas import COLOURS, GREY, room_above, sheet
from vllm_bench.plots.saved_requests import SavedRequest, saved_requests
from vllm_bench.plots.words import doubt, measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = numpy.typing.NDArray[numpy.float64]

_BINS = (10, 100)
_SHORTEST_BIN_SECONDS = 0.05
_MOST_STEPS = 4000
_NANOSECONDS = 9


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Numbers of requests, each from its moment to the next."""

    moments: Floats
    waiting: Floats
    """Those whose first text has not come."""
    receiving: Floats


def under_way(requests: Sequence[SavedRequest]) -> UnderWay:
    """One that ends as another begins is gone."""
    changes: dict[float, list[int]] = {}

    def change(moment: float, waiting: int, receiving: int) -> None:
        # Of equal moments, worked out in different ways, the last digits may differ.
        entry = changes.setdefault(round(moment, _NANOSECONDS), [0, 0])
        entry[0] += waiting
        entry[1] += receiving

    for request in requests:
        change(request.start, 1, 0)
        if request.ttft is None:
            change(request.end, -1, 0)
        else:
            change(request.start + request.ttft, -1, 1)
            change(request.end, 0, -1)
    moments = sorted(changes)
    numbers = numpy.cumsum([changes[moment] for moment in moments], axis=0).reshape(-1, 2).astype(numpy.float64)
    return UnderWay(numpy.asarray(moments, dtype=numpy.float64), numbers[:, 0], numbers[:, 1])


def num_bins(seconds: float) -> int:
    """Parts that a run is cut into, so that each is neither too short nor too coarse."""
    return int(min(max(seconds / _SHORTEST_BIN_SECONDS, _BINS[0]), _BINS[1]))


def rate(requests: Sequence[SavedRequest], seconds: float, bins: int, *, tokens: bool) -> Floats:
    """What the completed requests brought in a second, in each of ``bins`` equal parts of ``seconds``; shape [bins].

    Args:
        tokens: output tokens, those of a request spread evenly over its texts; else requests, at their end.
    """
    done = [request for request in requests if not request.error]
    moments, amounts = [], []
    for request in done:
        at = request.text_moments if tokens else [request.end]
        moments += at
        amounts += [(request.output_len if tokens else 1) / len(at)] * len(at)
    numbers = numpy.asarray(moments, dtype=numpy.float64) / seconds * bins
    places = numpy.clip(numbers, 0, bins - 1).astype(numpy.int64)
    return numpy.bincount(places, amounts, bins).astype(numpy.float64) * bins / seconds


def draw(result: Mapping[str, Any]) -> "Figure | None":
    """Both over the time of the run; None for a result without details or without requests."""
    requests = saved_requests(result)
    seconds = float(result.get("duration") or 0.0)
    if not requests or seconds <= 0:
        return None
    lines = [measured(result), *filter(None, [doubt(result)])]
    with sheet("Run over time", lines, 2, 1, (10.4, 6.0), sharex=True) as (figure, panels):
        _draw_under_way(panels[0, 0], requests)
        _draw_rate(panels[1, 0], result, requests, seconds)
        panels[1, 0].set_xlim(0, seconds)
        panels[1, 0].set_xlabel("seconds from the begin of the run")
    return figure


def _draw_under_way(axes: Any, requests: Sequence[SavedRequest]) -> None:
    found = under_way(requests)
    total = found.waiting + found.receiving
    many = len(found.moments) > _MOST_STEPS
    how = {"step": "post", "linewidth": 0, "rasterized": many}
    if found.receiving.any():
        axes.fill_between(found.moments, found.receiving, color=COLOURS[5], label="text is coming", **how)
        axes.fill_between(
            found.moments, found.receiving, total, color=COLOURS[4], label="waiting for the first text", **how
        )
    else:
        axes.fill_between(found.moments, total, color=COLOURS[5], label="waiting for the answer", **how)
    axes.step(
        found.moments,
        total,
        where="post",
        color="#1A1A1A",
        linewidth=0.4 if many else 0.9,
        label="together",
        rasterized=many,
    )
    _mark_failures(axes, requests)
    axes.set_title("Requests under way")
    axes.set_ylabel("requests")
    room_above(axes, 0.22)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right", ncols=4)


def _mark_failures(axes: Any, requests: Sequence[SavedRequest]) -> None:
    failed = [request.end for request in requests if request.error]
    if failed:
        label = f"a request failed ({len(failed)})"
        axes.plot(failed, numpy.zeros(len(failed)), "x", color=COLOURS[1], clip_on=False, label=label, zorder=5)


def _draw_rate(axes: Any, result: Mapping[str, Any], requests: Sequence[SavedRequest], seconds: float) -> None:
    tokens = any(request.output_len for request in requests)
    bins = num_bins(seconds)
    rates = rate(requests, seconds, bins, tokens=tokens)
    edges = numpy.linspace(0, seconds, bins + 1)
    unit = "output tokens" if tokens else "requests completed"
    axes.stairs(rates, edges, color=COLOURS[0], linewidth=1.6, label=f"mean of each {seconds / bins:.2g} s")
    mean = result.get("output_throughput" if tokens else "request_throughput")
    if isinstance(mean, (int, float)):
        axes.axhline(mean, color=GREY, linestyle="--", linewidth=1.3, label=f"of the whole run: {mean:,.4g}")
    axes.set_title(f"{unit.capitalize()} in a second")
    axes.set_ylabel(f"{unit.split()[1] if tokens else 'requests'}/s")
    room_above(axes, 0.22)
    axes.legend(loc="upper right", ncols=2)
