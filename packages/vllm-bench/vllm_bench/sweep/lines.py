"""A sweep's results as a table for a reader: a line for each combination, its figures the mean of its runs."""

import statistics
from typing import Any

from vllm_bench.sweep.store import DONE, PARTIAL, status

_FIGURES = {
    "request_throughput": ("requests/s", 2),
    "output_throughput": ("out tok/s", 1),
    "mean_ttft_ms": ("ttft ms", 2),
    "p99_ttft_ms": ("p99", 2),
    "mean_tpot_ms": ("tpot ms", 2),
    "p99_tpot_ms": ("p99", 2),
    "mean_e2el_ms": ("e2el ms", 2),
}
"""Key of a result -> title and decimals; what no result has is left out."""


def sweep_lines(results: list[dict[str, Any]]) -> list[str]:
    """Settings, figures of the runs that were done, and what became of the others."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(str((result["sweep"]["serve"], result["sweep"]["bench"])), []).append(result)
    settings = list(dict.fromkeys(key for result in results for key in _settings(result)))
    done = [result for result in results if status(result) == DONE]
    figures = [key for key in _FIGURES if any(result.get(key) is not None for result in done)]
    titles = [*(name for _, name in settings), "runs", *(_FIGURES[key][0] for key in figures), ""]
    rows = [titles]
    for group in groups.values():
        varied = _settings(group[0])
        good = [result for result in group if status(result) == DONE]
        shown = [_mean([result.get(key) for result in good], _FIGURES[key][1]) for key in figures]
        rows.append([*(str(varied.get(key, "")) for key in settings), str(len(good)), *shown, _note(group)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + _reasons(results)


def _settings(result: dict[str, Any]) -> dict[tuple[str, str], Any]:
    about = result["sweep"]
    return {(side, name): value for side in ("serve", "bench") for name, value in about[side].items()}


def _mean(values: list[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.{decimals}f}" if known else "-"


def _note(group: list[dict[str, Any]]) -> str:
    counts = {
        "NOT TO BE TRUSTED": sum(result.get("trusted") is False and status(result) == DONE for result in group),
        "partial": sum(status(result) == PARTIAL for result in group),
        "failed": sum(status(result) not in (DONE, PARTIAL) for result in group),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _reasons(results: list[dict[str, Any]]) -> list[str]:
    """What the reader must know, each thing once, with the first run that it is about."""
    lines = []
    if any(result["sweep"].get("prefix_cache_reset") is False for result in results):
        lines.append("note: the server does not let its prefix cache be emptied; a run may find the prompts of another")
    about: dict[str, list[str]] = {}
    for result in results:
        error = result["sweep"]["error"]
        reasons = [error.strip().splitlines()[-1].strip()] if error else []
        if result.get("trusted") is False:
            reasons += result.get("distrust_reasons", [])
        for reason in reasons:
            about.setdefault(reason, []).append(result["sweep"]["name"])
    for reason, names in about.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}: {reason}")
    return ["", *lines] if lines else []
