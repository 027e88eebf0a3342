"""Saved results of made-up requests, as ``vllm bench serve --save-detailed`` writes them."""

import numpy

from vllm_bench.load.run import LoadRun
from vllm_bench.measure.figures import load_figures
from vllm_bench.measure.run_intervals import run_intervals
from vllm_bench.records import RequestRecord
from vllm_bench.result.detailed import always_kept, detailed
from vllm_bench.result.partial import partial_facts

BEGAN = 1000.0


def made_run(number: int = 40, *, failed: int = 2, seed: int = 0) -> LoadRun:
    """Requests with random times; every one of the first ``failed`` ends in an error before its first text."""
    rng = numpy.random.default_rng(seed)
    records = []
    for index, start in enumerate(BEGAN + numpy.sort(rng.uniform(0, 2, number))):
        record = RequestRecord(start, start, prompt_len=int(rng.integers(5, 50)), sent=start + 1e-4)
        if index < failed:
            record.error, record.ended = "status 503: busy", start + 0.01
        else:
            chunks = int(rng.integers(1, 12))
            record.text_times = (start + rng.uniform(0.02, 0.2) + numpy.cumsum(rng.exponential(0.02, chunks))).tolist()
            record.texts = [" tok"] * chunks
            record.completion_tokens = chunks * int(rng.integers(1, 3))
            record.ended = record.text_times[-1] + 0.001
        records.append(record)
    return LoadRun(records, BEGAN, max(record.ended for record in records), 0.1, [0.0001])


def saved(run: LoadRun, **more: object) -> dict:
    """The result of a run; ``more`` are keys of its head."""
    figures = load_figures(run, [90.0, 99.0])
    head = {"date": "20260101-120000", "label": None, "backend": "openai", "model_id": "a-model", "dataset_name": "x"}
    head |= {"request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, "self_timed": False, "seed": 0}
    head["fingerprint"] = {
        "machine": {"cpu": "a <cpu> & more", "cores": 2},
        "versions": {"server": "1.0"},
        "flags": {"base_url": "http://127.0.0.1:8000", "input_len": 32, "plot": True},
        "seed": 0,
    }
    result = head | partial_facts(run) | figures | run_intervals(run, [90.0, 99.0], figures)
    return result | always_kept(run) | detailed(run) | more
