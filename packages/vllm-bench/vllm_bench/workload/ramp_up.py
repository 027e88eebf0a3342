"""A request rate that grows as the run goes on."""

import math
from argparse import Namespace
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from vllm_cli.command import CommandError

STRATEGIES = ("linear", "exponential")
"""Of ``--ramp-up-strategy``."""

_CLOCK_SECONDS = 1e-6
"""What is told of a moment, and far more than is lost where one is the difference of two readings of a clock."""


@dataclass(frozen=True, slots=True)
class RampUp:
    """Grows from ``start`` to ``end`` requests per second in ``seconds``, and stays there: by the same amount in equal
    times, or by the same factor.

    The requests before a moment are the integral of the rate up to it; what is due when follows from the inverse.
    """

    strategy: Literal["linear", "exponential"]
    start: float
    end: float
    seconds: float

    @classmethod
    def of(cls, options: Namespace) -> "RampUp | None":
        """What the options ask for. With ``--num-prompts``, the end is reached with the last of these.

        Raises:
            CommandError: (exit code 2) they do not go together.
        """
        strategy, start, end = options.ramp_up_strategy, options.ramp_up_start_rps, options.ramp_up_end_rps
        if strategy is None:
            if start is not None or end is not None:
                raise CommandError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy", exit_code=2)
            return None
        if start is None or end is None:
            raise CommandError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps", exit_code=2)
        if not math.isinf(options.request_rate):
            raise CommandError("--ramp-up-strategy sets the rate: no --request-rate beside it", exit_code=2)
        if start > end:
            raise CommandError(f"--ramp-up-start-rps {start:g} is above --ramp-up-end-rps {end:g}", exit_code=2)
        if strategy == "exponential" and start == 0:
            raise CommandError("--ramp-up-start-rps 0 grows by no factor: exponential needs more", exit_code=2)
        if options.duration is not None:
            return cls(strategy, start, end, options.duration)
        unit = cls(strategy, start, end, 1.0)
        return cls(strategy, start, end, options.num_prompts / unit.requests(1.0))

    def rate(self, moment: float) -> float:
        """Requests per second at ``moment``, in seconds from the begin."""
        share = min(1.0, moment / self.seconds)
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * share
        return float(self.start * (self.end / self.start) ** share)

    def requests(self, moment: float) -> float:
        """Requests up to ``moment``, which is within the growth."""
        if self.strategy == "linear":
            return (self.start + self.rate(moment)) / 2 * moment
        growth = self._growth
        return self.start * moment if not growth else (self.rate(moment) - self.start) / growth

    def moment(self, requests: float) -> float:
        """When so many requests have been due: the inverse, and beyond the growth at the final rate."""
        beyond = requests - self.requests(self.seconds)
        if beyond > 0:
            return self.seconds + beyond / self.end
        if self.strategy == "linear":
            slope = (self.end - self.start) / self.seconds
            return 2 * requests / (self.start + math.sqrt(self.start**2 + 2 * slope * requests)) if requests else 0.0
        growth = self._growth
        return requests / self.start if not growth else math.log1p(requests * growth / self.start) / growth

    def changes(self, until: float) -> list[tuple[float, float]]:
        """``(seconds from the begin, rate)``: the first, and each whole rate that was reached up to ``until``.

        What is reached with the last request is reached, although ``until`` is rounded.
        """
        whole = range(math.floor(self.start) + 1, math.floor(self.end) + 1)
        last = until + _CLOCK_SECONDS
        return [(0.0, self.start), *((at, rate) for rate in whole if (at := self._reached(rate)) <= last)]

    @property
    def _growth(self) -> float:
        """The exponent of exponential growth, in 1/s."""
        return math.log(self.end / self.start) / self.seconds

    def _reached(self, rate: float) -> float:
        if self.strategy == "linear":
            return self.seconds * (rate - self.start) / (self.end - self.start)
        return math.log(rate / self.start) / self._growth


def change_events(changes: list[tuple[float, float]], began: float) -> list[dict[str, object]]:
    """``rps_change_events`` of a result; ``began`` is the run's begin in seconds of ``time.time``."""
    return [
        {"rps": rate, "timestamp": datetime.fromtimestamp(began + seconds).isoformat()} for seconds, rate in changes
    ]
