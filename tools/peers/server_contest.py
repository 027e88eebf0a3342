"""Two servers measured in turn under the same load: how many times more tokens ours gives, and how much sooner."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from .same_work import SAME_WORK, complaint

FIGURES = {
    "output_throughput": "output tokens/s",
    "p99_ttft_ms": "TTFT, p99, ms",
    "mean_ttft_ms": "TTFT, mean, ms",
    "mean_tpot_ms": "TPOT, mean, ms",
    "p99_itl_ms": "ITL, p99, ms",
}
"""Key in a result of ``vllm bench serve`` -> title."""

GOALS = {"output_throughput": 3.0, "p99_ttft_ms": 1 / 3}
"""Ours over the peer's, in the same round: at least this throughput, at most this time."""

_KEPT = (*FIGURES, *SAME_WORK, "trusted", "distrust_reasons", "server_cpu_seconds")
_TITLES = ("figure", "ours", "peer's", "ours / peer's", "min to max", "goal", "")


@dataclass
class ServerContest:
    """Results of ``vllm bench serve`` with either server, of one round beside each other.

    A result has ``server_cpu_seconds`` as well: what the server's processes took of the cores meanwhile.
    """

    title: str
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)

    def complaint(self) -> str | None:
        """Why they cannot be compared; None if they can."""
        return complaint(self.ours, self.peer)

    def ratios(self, figure: str) -> list[float]:
        """Ours over the peer's, round by round: the two runs of a round are neighbours."""
        return [ours[figure] / peer[figure] for ours, peer in zip(self.ours, self.peer, strict=True)]

    def meets(self, figure: str) -> bool:
        """Whether the median of the ratios reaches the goal of a figure that has one."""
        ratio, goal = statistics.median(self.ratios(figure)), GOALS[figure]
        return ratio >= goal if goal > 1 else ratio <= goal

    @property
    def reached(self) -> bool:
        """All goals are met."""
        return self.complaint() is None and all(self.meets(figure) for figure in GOALS)

    def lines(self) -> list[str]:
        """A table with a line for each figure, and what the runs say of themselves."""
        if (complaint := self.complaint()) is not None:
            return [f"{self.title}: {complaint}"]
        rows = [_TITLES, *(self._row(figure, title) for figure, title in FIGURES.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for name, results in (("ours", self.ours), ("the peer's", self.peer)):
            micros = statistics.median(
                result["server_cpu_seconds"] / result["total_output_tokens"] * 1e6 for result in results
            )
            lines.append(f"{name}: {micros:.0f} us of CPU in the server for an output token")
            distrusted = [result for result in results if not result["trusted"]]
            if distrusted:
                reasons = sorted({reason for result in distrusted for reason in result["distrust_reasons"]})
                lines.append(f"{name}: no verdict in {len(distrusted)} of {len(results)} runs: {'; '.join(reasons)}")
        return [f"{self.title}, {len(self.ours)} rounds", *lines]

    def as_json(self) -> dict[str, Any]:
        """All figures of all rounds."""
        content: dict[str, Any] = {"title": self.title, "complaint": self.complaint(), "reached": self.reached}
        for name, results in (("ours", self.ours), ("peer", self.peer)):
            content[name] = [{key: result[key] for key in _KEPT if key in result} for result in results]
        return content

    def _row(self, figure: str, title: str) -> tuple[str, ...]:
        ratios = self.ratios(figure)
        medians = [statistics.median(result[figure] for result in results) for results in (self.ours, self.peer)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        goal = ""
        if figure in GOALS:
            goal = f">= {GOALS[figure]:.0f}" if GOALS[figure] > 1 else f"<= {GOALS[figure]:.2f}"
        verdict = "" if figure not in GOALS else "met" if self.meets(figure) else "MISSED"
        ratio = f"{statistics.median(ratios):.2f}"
        return (title, *(f"{median:.1f}" for median in medians), ratio, spread, goal, verdict)
