"""``vllm bench serve``: how a running server answers under load."""

import math
from argparse import Namespace
from pathlib import Path

from vllm_bench.serve_options import add_arguments, body_fields, check, shown_metrics

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "Load a running OpenAI-compatible server and report latencies and throughput"


def run(options: Namespace) -> int:
    """Measure and report.

    0: every request was completed; 1: not so; 130 or 143: interrupted by Ctrl-C or SIGTERM. What was measured until
    then is reported and saved in any case.
    """
    check(options)

    from vllm_bench.measurement import measure
    from vllm_bench.result.detailed import without_details
    from vllm_bench.result.options import saves
    from vllm_bench.result.partial import exit_code
    from vllm_bench.result.plot_options import draws
    from vllm_bench.result.save import check_place, default_name, save
    from vllm_bench.result.table import load_lines

    folder = options.result_dir or Path()
    if saves(options):
        check_place(folder / (options.result_filename or "result.json"))
    result = measure(options, body_fields(options))
    metrics = shown_metrics(options)
    if options.max_concurrency is not None and not math.isinf(options.request_rate):
        metrics += ["client_queue_time", "e2el_including_client_queue"]
    print("\n".join(load_lines(result, metrics, options.metric_percentiles)))
    if saves(options):
        path = folder / (options.result_filename or default_name(result))
        save(result if options.save_detailed else without_details(result), path, append=options.append_result)
        print(f"\nsaved to {path}")
        if draws(options):
            from vllm_bench.plots.files import base_of, draw

            base = base_of(path)
            if options.append_result:  # the file holds other runs, too
                base = base.with_name(f"{base.name}-{result['date']}")
            for drawn in draw([result], base, options):
                print(f"drawn: {drawn}")
    return exit_code(result)
