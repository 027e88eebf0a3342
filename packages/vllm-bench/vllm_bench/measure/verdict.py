"""Whether the figures are those of the server, or of a client that could not keep up."""

from typing import Any

import numpy

from vllm_bench.load.run import LoadRun

MAX_LAG_MS = 5.0
"""Where the 99th percentile of a lag is above this, the figures say more of the client than of the server."""


def verdict(run: LoadRun) -> dict[str, Any]:
    """The client's own state, and ``trusted`` with the reasons if it is false. Lags are in ms."""
    dispatch = _p99_ms([record.dispatch_lag for record in run.records])
    loop = _p99_ms(run.loop_lags)
    reasons = []
    if dispatch is not None and dispatch > MAX_LAG_MS:
        reasons.append(f"requests were sent late: p99 {dispatch:.1f} ms, at most {MAX_LAG_MS:g} are accepted")
    if loop is not None and loop > MAX_LAG_MS:
        reasons.append(f"the client's event loop was late: p99 {loop:.1f} ms, at most {MAX_LAG_MS:g} are accepted")
    return {
        "client_cpu_share": run.client_cpu_share,
        "p99_dispatch_lag_ms": dispatch,
        "p99_loop_lag_ms": loop,
        "trusted": not reasons,
        "distrust_reasons": reasons,
    }


def _p99_ms(seconds: list[float]) -> float | None:
    return float(numpy.percentile(seconds, 99)) * 1e3 if seconds else None
