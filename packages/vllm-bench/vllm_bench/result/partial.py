"""A result of a run that is not what was asked for: how it says so, and what the program then ends with."""

import signal
from typing import Any

from vllm_bench.load.run import LoadRun


def partial_facts(run: LoadRun) -> dict[str, Any]:
    """``partial``, with the reason, the requests that were cut off, and the signal that did it."""
    failed = sum(record.error is not None for record in run.records)
    reason = run.stopped
    if reason is None and failed:
        reason = f"{failed} of {len(run.records)} requests failed"
    number = run.signal_number
    return {
        "partial": reason is not None or not run.records,
        "partial_reason": reason if run.records or reason else "no request was sent",
        "unfinished": run.unfinished,
        "interrupted_by": None if number is None else signal.Signals(number).name,
    }


def exit_code(result: dict[str, Any]) -> int:
    """0: every request was completed; 1: not so; 128 and the signal's number: interrupted."""
    if result["interrupted_by"] is not None:
        return 128 + signal.Signals[result["interrupted_by"]]
    return 1 if result["partial"] else 0


def partial_lines(result: dict[str, Any]) -> list[str]:
    """What the reader must know of it."""
    if not result["partial"]:
        return []
    unfinished = result["unfinished"]
    cut = f"; {unfinished} requests under way were cut off and are not counted" if unfinished else ""
    return ["", f"PARTIAL: {result['partial_reason']}{cut}"]
