"""Where the time of a start goes: the phases that a server's log names, put in a row that adds up."""

from collections.abc import Sequence
from dataclasses import dataclass

LAUNCH = {"config": "python and imports", "engine imports": "engine process"}
"""Phase -> name of what is before it, which nobody can log: the begin of its process."""
BESIDE = ("tokenizer", "web framework")
"""Phases that run while the engine starts; only the one after all of them waits for these."""
READY, FIRST_TOKEN, BETWEEN = "ready (/health)", "first token", "between phases"
_LATE_SECONDS = 0.005
"""A line of the log may be read so much later than it was written."""
_NAMED_SECONDS = 0.01
"""A gap from here on has a line of its own."""


@dataclass(frozen=True, slots=True)
class LoggedPhase:
    """A phase by its line in the log. Seconds from the launch."""

    name: str
    seconds: float
    ended: float
    """When the line came."""

    @property
    def began(self) -> float:
        """When it began."""
        return max(0.0, self.ended - self.seconds)


@dataclass(frozen=True, slots=True)
class StartPhases:
    """Seconds of each phase of one start.

    ``path`` is what the first token had to wait for, one after the other: it adds up to the moment of the first token.
    ``beside`` is what ran meanwhile. ``unnamed`` is how much of the path no phase of the log and no launch of a process
    accounts for; it is in the path as "before <phase>", or "between phases" for short gaps together.
    """

    path: dict[str, float]
    beside: dict[str, float]
    unnamed: float


def in_a_row(phases: Sequence[LoggedPhase], healthy: float, first_token: float) -> StartPhases:
    """Walk back from the first token: before each phase is the one that ended last before it began.

    Args:
        phases: of both processes, as they were logged.
        healthy: when ``/health`` said 200, in seconds from the launch.
        first_token: when the first text came.
    """
    row = [(FIRST_TOKEN, first_token - healthy)]
    unnamed = 0.0
    moment, following = healthy, READY
    left = list(phases)
    joins = True
    while True:
        # Those beside the engine are done long before it, but a phase of the engine did not wait for them.
        earlier = [
            phase for phase in left if phase.ended <= moment + _LATE_SECONDS and (joins or phase.name not in BESIDE)
        ]
        found = max(earlier, key=lambda phase: phase.ended, default=None)
        ended = min(found.ended, moment) if found is not None else 0.0
        gap = moment - ended
        if following in LAUNCH or following == READY:
            row.append((LAUNCH.get(following, READY), gap))
        else:
            row.append((f"before {following}" if gap >= _NAMED_SECONDS else BETWEEN, gap))
            unnamed += gap
        if found is None:
            break
        began = min(found.began, ended)
        row.append((found.name, ended - began))
        left.remove(found)
        joins = following == READY
        moment, following = began, found.name
    path: dict[str, float] = {}
    for name, seconds in reversed(row):
        path[name] = path.get(name, 0.0) + seconds
    beside: dict[str, float] = {}
    for phase in left:
        beside[phase.name] = beside.get(phase.name, 0.0) + phase.seconds
    return StartPhases(path, beside, unnamed)
