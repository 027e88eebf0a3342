"""The figures of a load run: as keys for a JSON file, and as lines for a reader."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm_bench.closed_loop import LoadResult
from vllm_bench.distribution import summary

_TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "gap between chunks",
    "e2el": "whole request",
}

_BUSY_CLIENT_SHARE = 0.8


def load_figures(result: LoadResult, percents: Sequence[float]) -> dict[str, Any]:
    """Counts, throughputs and times of a run; failed requests count only as failed.

    Throughputs are tokens or requests of the completed ones over the whole duration, in 1/s; times are in ms.
    """
    done = [timing for timing in result.timings if timing.error is None]
    errors = Counter(timing.error for timing in result.timings if timing.error is not None)
    prompt_tokens = [timing.prompt_tokens for timing in done if timing.prompt_tokens is not None]
    input_tokens = sum(prompt_tokens) if len(prompt_tokens) == len(done) else None
    output_tokens = sum(timing.output_tokens for timing in done)
    per_second = 1 / result.seconds if result.seconds > 0 else 0.0
    figures: dict[str, Any] = {
        "duration": result.seconds,
        "completed": len(done),
        "failed": len(result.timings) - len(done),
        "errors": dict(errors.most_common()),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "tokens_counted_by": "usage" if all(timing.completion_tokens is not None for timing in done) else "chunks",
        "request_throughput": len(done) * per_second,
        "output_throughput": output_tokens * per_second,
        "total_token_throughput": None if input_tokens is None else (input_tokens + output_tokens) * per_second,
        "client_cpu_share": result.client_cpu_share,
    }
    figures |= summary("ttft", [timing.first_token_seconds for timing in done], percents)
    per_token = [timing.seconds_per_output_token for timing in done]
    figures |= summary("tpot", [seconds for seconds in per_token if seconds is not None], percents)
    figures |= summary("itl", [gap for timing in done for gap in timing.inter_token_seconds], percents)
    figures |= summary("e2el", [timing.total_seconds for timing in done], percents)
    return figures


def load_lines(figures: dict[str, Any], percents: Sequence[float]) -> list[str]:
    """The same figures for reading."""
    lines = [
        f"requests completed        {figures['completed']}",
        f"requests failed           {figures['failed']}",
        f"duration                  {figures['duration']:.2f} s",
        f"request throughput        {figures['request_throughput']:.2f} /s",
        f"output token throughput   {figures['output_throughput']:.1f} /s",
    ]
    if figures["total_token_throughput"] is not None:
        lines.append(f"total token throughput    {figures['total_token_throughput']:.1f} /s")
    if figures["completed"]:
        lines += ["", *_time_lines(figures, percents)]
    if figures["errors"]:
        lines += ["", "errors:", *(f"  {count} x {message}" for message, count in figures["errors"].items())]
    if figures["completed"] and figures["tokens_counted_by"] == "chunks":
        lines += ["", "note: the server reports no usage; tokens are counted as chunks of the stream"]
    if figures["client_cpu_share"] > _BUSY_CLIENT_SHARE:
        share = figures["client_cpu_share"]
        lines += ["", f"note: this client used {share:.0%} of a CPU; it may be slower than the server"]
    return lines


def _time_lines(figures: dict[str, Any], percents: Sequence[float]) -> list[str]:
    """A table with a line for each of the times."""
    columns = ["mean", "median", *(f"p{percent:g}" for percent in percents)]
    lines = [f"{'milliseconds':<46}" + "".join(f"{column:>10}" for column in columns)]
    for name, title in _TITLES.items():
        values = [figures[f"{column}_{name}_ms"] for column in columns]
        shown = (f"{value:>10.2f}" if value is not None else f"{'-':>10}" for value in values)
        lines.append(f"{f'{title} ({name})':<46}" + "".join(shown))
    return lines
