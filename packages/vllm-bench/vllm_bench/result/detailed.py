"""The arrays of a result: a value for each request, in the order of their start."""

from typing import Any

from vllm_bench.load.run import LoadRun

_DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")


def always_kept(run: LoadRun) -> dict[str, Any]:
    """What is saved in any case: seconds from start to end, and of waiting for a place among ``--max-concurrency``."""
    return {
        "latencies": [record.latency for record in run.records],
        "queue_times": [record.queue_seconds for record in run.records],
    }


def detailed(run: LoadRun) -> dict[str, Any]:
    """What ``--save-detailed`` adds. Moments are seconds from the begin of the run.

    ``ttfts`` has None where no text came; ``errors`` is empty for a completed request. ``output_lens`` are the tokens
    of completed requests, 0 of failed ones.
    """
    done = [record.error is None for record in run.records]
    return {
        "input_lens": [
            record.prompt_len if record.prompt_tokens is None else record.prompt_tokens for record in run.records
        ],
        "output_lens": [record.output_tokens if good else 0 for record, good in zip(run.records, done, strict=True)],
        "ttfts": [record.ttft if record.text_times else None for record in run.records],
        "itls": [record.itls for record in run.records],
        "start_times": [record.start - run.began for record in run.records],
        "generated_texts": ["".join(record.texts) for record in run.records],
        "errors": [record.error or "" for record in run.records],
    }


def without_details(result: dict[str, Any]) -> dict[str, Any]:
    """``result`` as it is saved without ``--save-detailed``."""
    return {key: value for key, value in result.items() if key not in _DETAILS}
