"""Whether two tools that measured the same server in turn say the same."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from .same_work import SAME_WORK, complaint

FIGURES = {
    "mean_ttft_ms": "TTFT, mean, ms",
    "mean_tpot_ms": "TPOT, mean, ms",
    "output_throughput": "output tokens/s",
    "mean_itl_ms": "ITL, mean, ms",
    "mean_e2el_ms": "whole request, mean, ms",
}
"""Key of both tools' results -> title."""

JUDGED = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")
GOAL = 0.03
"""Most that a judged ratio may be away from 1."""

_TITLES = ("figure", "ours", "peer's", "peer's / ours", "min to max", "within 3 %")


@dataclass
class Agreement:
    """Results of both tools, of one round beside each other."""

    server: str
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)

    def complaint(self) -> str | None:
        """Why they cannot be compared; None if they can."""
        return complaint(self.ours, self.peer)

    def ratios(self, figure: str) -> list[float]:
        """The peer tool's figure over ours, round by round."""
        return [peer[figure] / ours[figure] for ours, peer in zip(self.ours, self.peer, strict=True)]

    def agrees(self, figure: str) -> bool:
        """Whether the median of the ratios is as near to 1 as the goal wants."""
        return abs(statistics.median(self.ratios(figure)) - 1) <= GOAL

    @property
    def reached(self) -> bool:
        """All judged figures agree."""
        return self.complaint() is None and all(self.agrees(figure) for figure in JUDGED)

    def lines(self) -> list[str]:
        """A table with a line for each figure."""
        if (complaint := self.complaint()) is not None:
            return [f"{self.server}: {complaint}"]
        rows = [_TITLES, *(self._row(figure, title) for figure, title in FIGURES.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        distrusted = [result for result in self.ours if not result["trusted"]]
        if distrusted:
            reasons = sorted({reason for result in distrusted for reason in result["distrust_reasons"]})
            lines.append(f"ours gave no verdict in {len(distrusted)} of {len(self.ours)} runs: {'; '.join(reasons)}")
        return [f"against {self.server}, {len(self.ours)} rounds", *lines]

    def as_json(self) -> dict[str, Any]:
        """All figures of all rounds."""
        content: dict[str, Any] = {"server": self.server, "complaint": self.complaint(), "reached": self.reached}
        for name, results in (("ours", self.ours), ("peer", self.peer)):
            content[name] = [{key: result[key] for key in (*FIGURES, *SAME_WORK)} for result in results]
        return content

    def _row(self, figure: str, title: str) -> tuple[str, ...]:
        ratios = self.ratios(figure)
        verdict = "" if figure not in JUDGED else "yes" if self.agrees(figure) else "NO"
        means = [statistics.mean(result[figure] for result in results) for results in (self.ours, self.peer)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        return (title, *(f"{mean:.2f}" for mean in means), f"{statistics.median(ratios):.3f}", spread, verdict)
