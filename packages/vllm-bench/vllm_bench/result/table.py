"""The figures of a load run as lines for a reader."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_bench.result.partial import partial_lines
from vllm_bench.workload.words import UncountedWords

TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "gap between chunks",
    "e2el": "whole request",
    "client_queue_time": "waiting in the client",
    "e2el_including_client_queue": "both together",
}

_BUSY_CLIENT_SHARE = 0.8


def load_lines(figures: dict[str, Any], metrics: Sequence[str], percents: Sequence[float]) -> list[str]:
    """Counts and throughputs, a row for each of ``metrics``, errors, and what the reader must know of them."""
    lines = [
        f"requests completed        {figures['completed']}",
        f"requests failed           {figures['failed']}",
        f"most at a time            {figures['max_concurrent_requests']}",
        f"duration                  {figures['duration']:.2f} s",
        f"request throughput        {figures['request_throughput']:.2f} /s",
    ]
    if figures.get("request_goodput") is not None:
        lines.append(f"request goodput           {figures['request_goodput']:.2f} /s")
    if "output_throughput" in figures:
        lines.append(f"output token throughput   {figures['output_throughput']:.1f} /s")
    else:
        lines.append(f"sequence throughput       {figures['input_sequence_throughput']:.2f} /s")
    if figures["total_token_throughput"] is not None:
        lines.append(f"total token throughput    {figures['total_token_throughput']:.1f} /s")
    if figures["completed"]:
        lines += ["", *_time_lines(figures, metrics, percents)]
    if figures["error_counts"]:
        lines += ["", "errors:", *(f"  {count} x {message}" for message, count in figures["error_counts"].items())]
    return lines + notes(figures) + _verdict_lines(figures) + partial_lines(figures)


def _time_lines(figures: dict[str, Any], metrics: Sequence[str], percents: Sequence[float]) -> list[str]:
    """A table with a line for each of the times."""
    columns = ["mean", "median", *(f"p{percent:g}" for percent in percents)]
    intervals = figures.get("confidence_intervals", {})
    lines = [f"{'milliseconds':<46}" + "".join(f"{column:>20}" for column in columns)]
    for name in metrics:
        values = [figures[f"{column}_{name}_ms"] for column in columns]
        shown = (f"{value:>20.2f}" if value is not None else f"{'-':>20}" for value in values)
        short = f" ({name})" if len(name) < 5 else ""
        lines.append(f"{TITLES[name] + short:<46}" + "".join(shown))
        ends = [intervals.get(f"{column}_{name}_ms") for column in columns]
        if any(each and any(end is not None for end in each) for each in ends):
            lines.append(f"{'    95 % interval':<46}" + "".join(f"{_interval(each):>20}" for each in ends))
    return lines


def _interval(ends: Sequence[float | None] | None) -> str:
    low, high = (f"{end:.2f}" if end is not None else "?" for end in ends or (None, None))
    return f"{low} .. {high}"


def notes(figures: Mapping[str, Any]) -> list[str]:
    """What the reader must know, but for the verdict; an empty line before each."""
    lines = []
    if figures.get("tokenizer_id") == UncountedWords.name:
        lines += ["", "note: no tokens were counted beforehand; made-up prompts have a word for each wanted token"]
        lines += ["      (--tokenizer with the model's folder makes them exact)"]
    if figures["completed"] and figures.get("tokens_counted_by") == "chunks":
        lines += ["", "note: the server reports no usage; tokens are counted as chunks of the stream"]
    if figures.get("prompt_token_mismatches"):
        count = figures["prompt_token_mismatches"]
        lines += ["", f"note: in {count} requests the server counted other prompt tokens than this client"]
    if figures.get("output_token_mismatches"):
        count, example = figures["output_token_mismatches"], figures["output_token_mismatch_example"]
        lines += [
            "",
            f"note: in {count} requests the server's count of output tokens is not what is expected: {example}",
        ]
        lines += ["      (a model may choose other tokens than a tokenizer would cut its text into)"]
    if (figures.get("client_cpu_share") or 0.0) > _BUSY_CLIENT_SHARE:
        share = figures["client_cpu_share"]
        lines += ["", f"note: this client used {share:.0%} of a CPU; it may be slower than the server"]
    return lines


def _verdict_lines(figures: Mapping[str, Any]) -> list[str]:
    if figures["trusted"]:
        return []
    return ["", "NO VERDICT: these figures are not the server's alone", *figures["distrust_reasons"]]
