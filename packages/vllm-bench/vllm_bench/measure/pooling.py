"""The figures of a run whose answers are vectors or scores: there are no tokens but those that went in."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm_bench.load.run import LoadRun
from vllm_bench.measure.distribution import summary
from vllm_bench.measure.over_time import peak_concurrency
from vllm_bench.measure.token_counts import input_token_check, total_input_tokens
from vllm_bench.measure.verdict import verdict


def pooling_figures(run: LoadRun, percents: Sequence[float]) -> dict[str, Any]:
    """Counts, throughputs and times of a run; failed requests count only as failed.

    Throughputs are of the completed requests over the whole duration, in 1/s; times are in ms. A sequence is what the
    model reads at a time: a text, or a query with one document.
    """
    done = [record for record in run.records if record.error is None]
    errors = Counter(record.error for record in run.records if record.error is not None)
    tokens = total_input_tokens(done)
    sequences = sum(record.num_inputs for record in done)
    per_second = 1 / run.seconds if run.seconds > 0 else 0.0
    return {
        "duration": run.seconds,
        "completed": len(done),
        "failed": len(run.records) - len(done),
        "error_counts": dict(errors.most_common()),
        "total_input_tokens": tokens,
        "total_input_sequences": sequences,
        "request_throughput": len(done) * per_second,
        "input_sequence_throughput": sequences * per_second,
        "total_token_throughput": None if tokens is None else tokens * per_second,
        "max_concurrent_requests": peak_concurrency(run.records),
        **input_token_check(done),
        **verdict(run),
        **summary("e2el", [record.latency for record in done], percents),
    }
