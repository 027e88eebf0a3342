"""What a contest gave: times taken in turn, the ratios of neighbours, and whether a goal was met."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .works import Contest


@dataclass
class Outcome:
    """Seconds of each round, ours and the peer's; ``refused`` says why there are none."""

    contest: Contest
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    our_first: list[float] = field(default_factory=list)
    """Of the same work with one token for each request, where the bandwidth is measured."""
    peer_first: list[float] = field(default_factory=list)
    read_bandwidth: list[float] = field(default_factory=list)
    """Bytes a second of the read test, in each round."""
    peak_flops: float | None = None
    """FLOP a second of the machine at its best, for a product."""
    others: float | None = None
    """Most cores that other processes kept busy during one measurement; unknown for a start."""
    refused: str | None = None

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours was, round by round: the two times of a round are neighbours."""
        return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.ratios)

    @property
    def flops(self) -> float:
        """FLOP a second of our product."""
        return self.contest.work.flops / statistics.median(self.ours)

    def bandwidth_share(self, times: list[float], first: list[float], step_bytes: int) -> float:
        """Share of the read test's bandwidth that decode steps use.

        Args:
            times: seconds of whole runs.
            first: seconds up to the first token, which are bound by arithmetic.
            step_bytes: that one decode step has to read.
        """
        steps = self.contest.work.output_len - 1
        seconds = statistics.median(times) - statistics.median(first)
        return steps * step_bytes / seconds / statistics.median(self.read_bandwidth)

    def misses(self, step_bytes: int) -> list[str]:
        """Every goal that was not met, in words."""
        goal, misses = self.contest.goal, []
        if self.refused is not None:
            return ["not measured"]
        if goal.ratio is not None and self.ratio < goal.ratio:
            misses.append(f"{self.ratio:.2f}x of {goal.ratio}x")
        if goal.seconds is not None and (ours := statistics.median(self.ours)) > goal.seconds:
            misses.append(f"{ours:.2f} s of {goal.seconds} s")
        if goal.flops is not None and self.flops < goal.flops:
            misses.append(f"{self.flops / 1e12:.2f} of {goal.flops / 1e12} TFLOP/s")
        if goal.bandwidth is not None:
            share = self.bandwidth_share(self.ours, self.our_first, step_bytes)
            if share < goal.bandwidth:
                misses.append(f"{share:.0%} of {goal.bandwidth:.0%} bandwidth")
        return misses

    def as_json(self, step_bytes: int) -> dict[str, Any]:
        """Everything, as plain data."""
        contest = self.contest
        content: dict[str, Any] = {
            "work": contest.name,
            "peer": contest.peer,
            "peer_weights": contest.peer_weights,
            "our_options": contest.ours,
            "requests": contest.work.requests,
            "input_len": contest.work.input_len,
            "output_len": contest.work.output_len,
            "goal": {name: value for name, value in vars(contest.goal).items() if value is not None},
            "refused": self.refused,
            "seconds": {"ours": self.ours, "peer": self.peer},
            "others_busy_cores": self.others,
        }
        if self.refused is None:
            content |= {"ratio": self.ratio, "ratios": self.ratios, "misses": self.misses(step_bytes)}
            if self.read_bandwidth:
                content |= {
                    "first_token_seconds": {"ours": self.our_first, "peer": self.peer_first},
                    "read_bytes_per_second": self.read_bandwidth,
                    "step_bytes": step_bytes,
                    "bandwidth_share": {
                        "ours": self.bandwidth_share(self.ours, self.our_first, step_bytes),
                        "peer": self.bandwidth_share(self.peer, self.peer_first, step_bytes),
                    },
                }
            if contest.work.kind == "multiply":
                content |= {"flops": self.flops, "peak_flops": self.peak_flops}
        return content


def alternate(ours: Callable[[int], None], peer: Callable[[int], None], rounds: int) -> None:
    """Call both once a round, with the round's number; who begins changes every round, so that a drift favours none."""
    for number in range(rounds):
        for party in (ours, peer) if number % 2 == 0 else (peer, ours):
            party(number)
