"""``--plot-timeline``: a page with a row for each request, from its start to its end, coloured by its waits.

It needs no library and no script: the rows are an SVG drawing whose positions are percentages, so that style alone
stretches it; the browser shows a row's facts where the pointer rests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vllm_bench.plots.page import heading, page, paragraph
from vllm_bench.plots.saved_requests import SavedRequest, saved_requests
from vllm_bench.plots.words import doubt, measured

KINDS = ("ttft", "low", "middle", "high", "rest", "failed")
"""What a piece of a row is: the wait for the first text, gaps below, between and above the thresholds, what follows
the last text, and the whole of a failed request."""

_COLOURS = dict(zip(KINDS, ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#BBBBBB", "#000000"), strict=True))
_MOST_PIECES = 40_000
_MOST_ROWS = 2000
_ROW, _BAR = 14, 11
_ZOOMS = (1, 2, 5, 10, 25)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a request's row: moments in seconds from the begin of the run."""

    kind: str
    begin: float
    end: float
    gaps: int = 1
    """Neighbouring gaps of the same kind are one piece."""


def pieces(request: SavedRequest, thresholds: Sequence[float]) -> list[Piece]:
    """From the start of the request to its end.

    Args:
        thresholds: two, in ms; a gap that equals one is above it.
    """
    if request.error:
        return [Piece("failed", request.start, request.end)]
    if request.ttft is None:
        return [Piece("ttft", request.start, request.end)]
    found = [Piece("ttft", request.start, request.start + request.ttft)]
    now = found[0].end
    for gap in request.itls:
        kind = ("low", "middle", "high")[sum(1e3 * gap >= threshold for threshold in thresholds)]
        last = found[-1]
        if last.kind == kind:
            found[-1] = Piece(kind, last.begin, now + gap, last.gaps + 1)
        else:
            found.append(Piece(kind, now, now + gap))
        now += gap
    if request.end > now:
        found.append(Piece("rest", now, request.end))
    return found


def request_timeline(result: Mapping[str, Any], thresholds: Sequence[float]) -> str | None:
    """The page; None for a result without details or without requests.

    Of very many requests only the first are drawn, which the page says.
    """
    requests = saved_requests(result)
    if not requests:
        return None
    rows: list[list[Piece]] = []
    room = _MOST_PIECES
    for request in requests[:_MOST_ROWS]:
        row = pieces(request, thresholds)
        room -= len(row)
        if room < 0 and rows:
            break
        rows.append(row)
    seconds = max(row[-1].end for row in rows)
    lines = [
        paragraph(text, kind)
        for text, kind in (
            (measured(result), "measured"),
            (doubt(result), "verdict bad"),
            (f"The first {len(rows)} of {len(requests)} requests." if len(rows) < len(requests) else None, ""),
            ("A row is a request, in the order of their start. Rest the pointer on one to read its times.", ""),
        )
        if text
    ]
    title = f"Timeline of the requests: {result.get('model_id')}"
    drawing = _drawing(requests, rows, seconds)
    body = [heading(1, title), *lines, _legend(thresholds), *_zoom(), f'<div class="rows">{drawing}</div>']
    return page(title, body, _style())


def _style() -> str:
    zooms = "".join(
        f"#zoom{factor}:checked ~ div.rows svg {{ width: {100 * factor}%; }}\n" for factor in _ZOOMS if factor > 1
    )
    fills = "".join(f".{kind} {{ fill: {colour}; background: {colour}; }}\n" for kind, colour in _COLOURS.items())
    return (
        "div.rows { overflow: auto; max-height: 80vh; border: 1px solid #ddd; }\n"
        "div.rows svg { width: 100%; display: block; }\n"
        "svg.axis { position: sticky; top: 0; background: #fff; }\n"
        "svg text { font-size: 11px; fill: #555; } svg line { stroke: #ddd; } g:hover rect { opacity: 0.6; }\n"
        "span.key { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 1.2em; }\n"
        f"body {{ max-width: none; }}\n{fills}{zooms}"
    )


def _legend(thresholds: Sequence[float]) -> str:
    low, high = (f"{threshold:g}" for threshold in thresholds)
    texts = {
        "ttft": "waiting for the first text",
        "low": f"gaps below {low} ms",
        "middle": f"{low} to {high} ms",
        "high": f"{high} ms and above",
        "rest": "from the last text to the end",
        "failed": "failed",
    }
    return "<p>" + "".join(f'<span class="key {kind}"></span>{escape(text)}' for kind, text in texts.items()) + "</p>"


def _zoom() -> list[str]:
    """Buttons that stretch the drawing."""
    return ["Stretch:"] + [
        f'<input type="radio" name="zoom" id="zoom{factor}"{" checked" if factor == 1 else ""}>'
        f'<label for="zoom{factor}">{factor}×</label>'
        for factor in _ZOOMS
    ]


def _drawing(requests: Sequence[SavedRequest], rows: Sequence[Sequence[Piece]], seconds: float) -> str:
    height = _ROW * (len(rows) + 1)
    marks = [(moment, _percent(moment, seconds)) for moment in ticks(seconds)]
    parts = [f'<svg class="axis" height="{_ROW + 4}" aria-hidden="true">']
    for moment, x in marks:
        side = ' text-anchor="end" dx="-3"' if moment > 0.95 * seconds else ' dx="3"'
        parts.append(f'<text x="{x}" y="{_ROW}"{side}>{moment:g} s</text>')
    parts.append(f'</svg>\n<svg height="{height}" role="img" aria-label="timeline of {len(rows)} requests">')
    parts += [f'<line x1="{x}" x2="{x}" y1="0" y2="{height}"/>' for _, x in marks]
    for number, (request, row) in enumerate(zip(requests, rows, strict=False)):
        y = _ROW * number + _ROW // 2
        bars = "".join(
            f'<rect class="{piece.kind}" x="{_percent(piece.begin, seconds)}" '
            f'width="{_percent(piece.end - piece.begin, seconds)}" y="{y}" height="{_BAR}"/>'
            for piece in row
        )
        parts.append(f"<g><title>{escape(_facts(number, request))}</title>{bars}</g>")
    return "\n".join([*parts, "</svg>"])


def _facts(number: int, request: SavedRequest) -> str:
    facts = [f"request {number + 1}", f"from {request.start:.3f} s to {request.end:.3f} s"]
    if request.ttft is not None:
        facts.append(f"first text after {1e3 * request.ttft:.1f} ms")
    if request.itls:
        facts.append(f"{len(request.itls)} gaps, the longest {1e3 * max(request.itls):.1f} ms")
    known = "?" if request.input_len is None else request.input_len
    return "\n".join([*facts, request.error or f"tokens: {known} in, {request.output_len} out"])


def ticks(seconds: float) -> list[float]:
    """Round moments from 0 to ``seconds``, five to twelve of them where it is no tiny one."""
    rough = max(seconds, 1e-6) / 10
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 9) for number in range(int(seconds / step) + 1)]


def _percent(value: float, whole: float) -> str:
    return f"{100 * value / max(whole, 1e-9):.4f}".rstrip("0").rstrip(".") + "%"
