"""One page of HTML for one result or several: verdict, figures with their intervals, pictures, fingerprint."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_bench.plots import words
from vllm_bench.plots.canvas import svg_uri
from vllm_bench.plots.page import cell, folded, heading, page, paragraph, picture, table
from vllm_bench.result.table import TITLES, notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]

_COUNTS = (
    ("completed", "requests completed", ""),
    ("failed", "requests failed", ""),
    ("max_concurrent_requests", "most at a time", ""),
    ("duration", "duration", "s"),
    ("request_throughput", "request throughput", "requests/s"),
    ("request_goodput", "request goodput", "requests/s"),
    ("input_sequence_throughput", "sequence throughput", "sequences/s"),
    ("output_throughput", "output token throughput", "tokens/s"),
    ("total_token_throughput", "total token throughput", "tokens/s"),
    ("max_output_tokens_per_s", "most output tokens in a second", "tokens"),
    ("total_input_tokens", "tokens in", ""),
    ("total_output_tokens", "tokens out", ""),
    ("client_cpu_share", "CPUs that the client used", ""),
    ("p99_dispatch_lag_ms", "requests sent late (p99)", "ms"),
    ("p99_loop_lag_ms", "client's event loop late (p99)", "ms"),
)
_OVERVIEW = (
    ("request_throughput", "requests/s"),
    ("output_throughput", "output tokens/s"),
    ("mean_ttft_ms", "mean ttft (ms)"),
    ("mean_tpot_ms", "mean tpot (ms)"),
    ("mean_e2el_ms", "mean e2el (ms)"),
)
_ALT = {
    "throughput": "latency against throughput of the results",
    "cdf": "cumulative distributions of the latencies",
    "timeline": "requests under way and throughput over the time of the run",
    "dataset_stats": "histograms of the lengths of prompts and answers",
}


def report(results: Sequence[Result], figures: Mapping[str, "Figure"]) -> str:
    """The page.

    Args:
        figures: kind of picture -> picture, shown in this order.
    """
    pictures = [picture(svg_uri(figure), _ALT[kind]) for kind, figure in figures.items()]
    if len(results) == 1:
        result = results[0]
        title = f"vllm bench serve: {result.get('model_id')}"
        body = [heading(1, title), paragraph(words.measured(result), "measured"), *_about(result)]
        return page(title, [*body, *_section("Pictures", pictures), *_fingerprint(result)])
    title = f"vllm bench serve: {len(results)} results"
    named = words.names(results)
    body = [heading(1, title), heading(2, "Overview"), _overview(results, named), *_section("Pictures", pictures)]
    body.append(heading(2, "Each result"))
    for name, result in zip(named, results, strict=True):
        parts = [paragraph(words.measured(result), "measured"), *_about(result), *_fingerprint(result)]
        body.append(folded(name, parts))
    return page(title, body)


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [heading(2, title), *parts] if parts else []


def _overview(results: Sequence[Result], named: Sequence[str]) -> str:
    rows = []
    for name, result in zip(named, results, strict=True):
        row = [cell(name, kind="text"), cell(f"{result.get('completed', '?')} / {result.get('failed') or 0}")]
        row += [_figure(result, key) for key, _ in _OVERVIEW]
        rows.append([*row, cell(words.doubt(result) or "", kind="doubtful")])
    return table(["", "completed / failed", *(title for _, title in _OVERVIEW), ""], rows)


def _about(result: Result) -> Iterator[str]:
    """Verdict, figures, errors and notes."""
    yield _verdict(result)
    yield heading(2, "Figures")
    yield paragraph("Small numbers are 95 % confidence intervals; ? is an end that the run cannot tell.", "measured")
    rows = [
        [cell(title), _figure(result, key), cell(unit, kind="text")]
        for key, title, unit in _COUNTS
        if result.get(key) is not None
    ]
    yield table([], rows)
    metrics = [name for name in TITLES if result.get(f"mean_{name}_ms") is not None]
    columns = ["mean", "median", "std", *_percentiles(result)]
    if metrics:
        rows = [
            [cell(f"{TITLES[name]} ({name})"), *(_figure(result, f"{column}_{name}_ms") for column in columns)]
            for name in metrics
        ]
        yield table(["milliseconds", *columns], rows)
    if errors := result.get("error_counts"):
        yield heading(2, "Errors")
        yield table([], [[cell(message, kind="text"), cell(str(count))] for message, count in errors.items()])
    if lines := notes(result):
        yield heading(2, "Notes")
        yield from (paragraph(" ".join(part.split())) for part in "\n".join(lines).split("\n\n") if part.strip())


def _verdict(result: Result) -> str:
    doubt = words.doubt(result)
    if doubt is not None:
        cut = result.get("unfinished")
        return paragraph(doubt + (f"; {cut} requests under way were cut off" if cut else ""), "verdict bad")
    if "trusted" not in result:
        return paragraph("The result does not say whether its client kept up.", "verdict bad")
    return paragraph("The client kept up: the figures are the server's.", "verdict good")


def _percentiles(result: Result) -> list[str]:
    found = {match[1] for key in result if (match := re.fullmatch(r"p(\d+(?:\.\d+)?)_\w+_ms", key)) is not None}
    times = [name for name in found if any(f"p{name}_{metric}_ms" in result for metric in TITLES)]
    return [f"p{name}" for name in sorted(times, key=float)]


def _figure(result: Result, key: str) -> str:
    value = result.get(key)
    if not isinstance(value, (int, float)):
        return cell("–")
    ends = (result.get("confidence_intervals") or {}).get(key) or (None, None)
    known = any(end is not None for end in ends)
    low, high = ("?" if end is None else _number(end) for end in ends)
    return cell(_number(value), f"{low} .. {high}" if known else None)


def _number(value: float) -> str:
    """Whole numbers as they are, others with two places or four digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _fingerprint(result: Result) -> Iterator[str]:
    """Machine, versions and flags, and what the user said of it."""
    found = result.get("fingerprint")
    if not isinstance(found, Mapping):
        return
    yield heading(2, "Measured with")
    facts = {"date": result.get("date"), "label": result.get("label"), "seed": found.get("seed")}
    facts |= {f"machine: {key}": value for key, value in (found.get("machine") or {}).items()}
    facts |= {f"version: {key}": value for key, value in (found.get("versions") or {}).items()}
    yield _facts(facts)
    yield folded("Flags", [_facts(found.get("flags") or {})])


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [
        [cell(key), cell(str(value), kind="text")] for key, value in facts.items() if value is not None and value != []
    ]
    return table([], rows)
