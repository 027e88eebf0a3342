"""All figures of a load run, under the keys of its result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_bench.load.run import LoadRun
from vllm_bench.measure.distribution import summary
from vllm_bench.measure.goodput import num_good
from vllm_bench.measure.over_time import peak_concurrency, peak_tokens_per_second
from vllm_bench.measure.token_counts import total_input_tokens, usage_check
from vllm_bench.measure.verdict import verdict


def load_figures(run: LoadRun, percents: Sequence[float], limits: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Counts, throughputs and times of a run; failed requests count only as failed.

    Throughputs are tokens or requests of the completed ones over the whole duration, in 1/s; times are in ms.

    Args:
        limits: metric -> ms that a request must keep to count for ``request_goodput``, which else is None.
    """
    done = [record for record in run.records if record.error is None]
    errors = Counter(record.error for record in run.records if record.error is not None)
    input_tokens = total_input_tokens(done)
    output_tokens = sum(record.output_tokens for record in done)
    per_second = 1 / run.seconds if run.seconds > 0 else 0.0
    figures: dict[str, Any] = {
        "duration": run.seconds,
        "completed": len(done),
        "failed": len(run.records) - len(done),
        "error_counts": dict(errors.most_common()),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(done) * per_second,
        "request_goodput": num_good(done, limits) * per_second if limits else None,
        "output_throughput": output_tokens * per_second,
        "total_token_throughput": None if input_tokens is None else (input_tokens + output_tokens) * per_second,
        "max_output_tokens_per_s": peak_tokens_per_second(done, run.began),
        "max_concurrent_requests": peak_concurrency(run.records),
        **usage_check(done),
        **verdict(run),
    }
    figures |= summary("ttft", [record.ttft for record in done if record.text_times], percents)
    figures |= summary("tpot", [record.tpot for record in done if record.tpot is not None], percents)
    figures |= summary("itl", [gap for record in done for gap in record.itls], percents)
    figures |= summary("e2el", [record.latency for record in done], percents)
    return figures


def queue_figures(run: LoadRun, percents: Sequence[float]) -> dict[str, Any]:
    """What waiting for a place among ``--max-concurrency`` adds; in ms."""
    done = [record for record in run.records if record.error is None]
    whole = [record.ended - record.arrival for record in done]
    return {
        **summary("client_queue_time", [record.queue_seconds for record in done], percents),
        **summary("e2el_including_client_queue", whole, percents),
    }
