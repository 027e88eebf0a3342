"""The outcomes as a table and remarks."""

import statistics
from typing import Any

from .outcome import Outcome
from .works import Goal

_TITLES = ("work / peer", "ratio", "min to max", "goal", "", "ours, noisy", "peer, noisy", "others")


def machine_line(machine: dict[str, Any]) -> str:
    """One line about the machine, from ``machine.describe``."""
    instructions = ", ".join(machine["instructions"]) or "no AVX2"
    memory = machine["memory"] / 2**30
    return f"{machine['cores']} cores of {machine['processor']} ({instructions}), {memory:.0f} GiB"


def table(outcomes: list[Outcome], step_bytes: int, *, judge: bool) -> list[str]:
    """Lines of the table.

    Args:
        outcomes: one row each.
        step_bytes: that one decode step of the ``single`` work has to read.
        judge: whether the goals are meant for what was run.
    """
    rows = [_TITLES, *(_row(outcome, step_bytes, judge) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def remarks(outcomes: list[Outcome], step_bytes: int) -> list[str]:
    """What the table has no room for: refusals, bandwidth and FLOP."""
    lines = []
    for outcome in outcomes:
        title = outcome.contest.title
        if outcome.refused is not None:
            lines.append(f"{title}: not measured: {outcome.refused.splitlines()[-1].strip()}")
            continue
        if outcome.read_bandwidth:
            read = statistics.median(outcome.read_bandwidth)
            ours = outcome.bandwidth_share(outcome.ours, outcome.our_first, step_bytes)
            peer = outcome.bandwidth_share(outcome.peer, outcome.peer_first, step_bytes)
            whole = outcome.contest.work.output_len * step_bytes / statistics.median(outcome.ours) / read
            lines.append(
                f"{title}: decode steps read {step_bytes / 1e9:.2f} GB each of weights and KV: {ours:.0%} of the read "
                f"test's {read / 1e9:.1f} GB/s (peer {peer:.0%}; ours with the prefill's time {whole:.0%})"
            )
        if outcome.peak_flops is not None:
            lines.append(
                f"{title}: {outcome.flops / 1e12:.2f} TFLOP/s, {outcome.flops / outcome.peak_flops:.0%} of the "
                f"{outcome.peak_flops / 1e12:.2f} that torch reaches with large square matrices here"
            )
    return lines


def _row(outcome: Outcome, step_bytes: int, judge: bool) -> tuple[str, ...]:
    title, goal = outcome.contest.title, _goal_words(outcome.contest.goal)
    if outcome.refused is not None:
        return (title, "-", "", goal, "not measured" if goal else "", "-", "-", "")
    spread = f"{min(outcome.ratios):.2f} to {max(outcome.ratios):.2f}"
    missed = outcome.misses(step_bytes)
    verdict = ("missed: " + ", ".join(missed) if missed else "met") if goal and judge else ""
    times = (_time_words(outcome, outcome.ours), _time_words(outcome, outcome.peer))
    others = "" if outcome.others is None else f"{outcome.others:.1f}"
    return (title, f"{outcome.ratio:.2f}", spread, goal, verdict, *times, others)


def _goal_words(goal: Goal) -> str:
    words = []
    if goal.ratio is not None:
        words.append(f">= {goal.ratio}x")
    if goal.seconds is not None:
        words.append(f"<= {goal.seconds} s")
    if goal.bandwidth is not None:
        words.append(f">= {goal.bandwidth:.0%} bandwidth")
    if goal.flops is not None:
        words.append(f">= {goal.flops / 1e12} TFLOP/s (AMX)")
    return ", ".join(words)


def _time_words(outcome: Outcome, times: list[float]) -> str:
    seconds = statistics.median(times)
    work = outcome.contest.work
    if work.kind == "multiply":
        return f"{seconds * 1e3:.1f} ms"
    if work.kind == "startup" or work.requests == 1:
        return f"{seconds:.2f} s"
    return f"{seconds:.2f} s ({work.tokens / seconds:.0f} tok/s)"
