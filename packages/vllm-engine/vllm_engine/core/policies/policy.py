"""What the scheduler asks of ``--scheduling-policy``, and the answers of a policy that is an order and nothing else."""

from collections.abc import Callable, Sequence
from typing import Protocol

from vllm_engine.core.policies.waiting import OrderKey
from vllm_engine.core.request import Request


class Waiting(Protocol):
    """The waiting requests of a policy."""

    def __len__(self) -> int: ...

    def push(self, request: Request) -> None:
        """Add a request at its place."""

    def first(self, *, with_long: bool) -> Request | None:
        """The next request, or the next that is not long; None when there is none."""

    def remove(self, request_id: str) -> Request | None:
        """Take out a request by id, if it waits here."""


class StepRules:
    """What a policy says about one step, its order apart. These rules say nothing: the settings decide alone."""

    def __init__(self) -> None:
        self.num_partial = 0
        """Requests that may be part-way through their prefill, where the policy has made them more than the settings
        say.
        """
        self.stands_back: Callable[[Request], bool] | None = None
        """Which of the requests that generate let the step go by. None: none of them."""

    def limit(self, request: Request, count: int) -> int:
        """How many of ``count`` tokens of a request's prefill the step can compute, 0 included."""
        return count

    def take(self, request: Request, count: int) -> None:
        """The step computes ``count`` tokens of a request's prefill."""

    def admits(self, request: Request, partial: Sequence[Request]) -> bool:
        """Whether a request may be part-way through its prefill beside ``partial``, whatever the settings say."""
        return False


class Policy:
    """Who comes first. This one goes by an order that no step changes: ``fcfs`` and ``priority``.

    It holds the waiting requests, and hears of each request when it comes, runs, is served, waits again and ends.
    """

    _SETTINGS_ALONE = StepRules()

    def __init__(self, order: OrderKey, waiting: Waiting) -> None:
        """
        Args:
            order: sort key of the running requests; the last one is preempted first.
            waiting: is empty, and goes by the same policy.
        """
        self.order = order
        self._waiting = waiting

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def first(self, *, with_long: bool = True) -> Request | None:
        """The next of the waiting requests, or the next that is not long; None when there is none."""
        return self._waiting.first(with_long=with_long)

    def begin_step(
        self, running: list[Request], could_start: Callable[[Request], bool], preempt: Callable[[Request], None]
    ) -> StepRules:
        """Get ready for the next step. All questions and news until the next call are about this one.

        Args:
            running: in the order of the policy, which may have changed: then they are sorted here.
            could_start: whether there are a place and blocks for a waiting request.
            preempt: takes a request from the running ones and sends it back, so that a waiting one can start.
        """
        return self._SETTINGS_ALONE

    def expect_streams(self) -> None:
        """Somebody waits for each token. From now on a step may depend on the time that others took."""

    def end_step(self, seconds: float) -> None:
        """The oldest step under way has been computed, ``seconds`` after it, or the end of the one before it."""

    def add(self, request: Request) -> None:
        """A request has come, and waits."""
        self._waiting.push(request)

    def start(self, request: Request) -> None:
        """A waiting request begins to run."""
        self._waiting.remove(request.request_id)

    def charge_prompt(self, request: Request, num_tokens: int) -> None:
        """A request runs for the first time: so many tokens of its prompt are to be computed."""

    def charge_output(self, request: Request, num_tokens: int) -> None:
        """So many tokens were generated for a request."""

    def send_back(self, request: Request) -> None:
        """A running request waits again, to be computed from its first token."""
        self._waiting.push(request)

    def remove(self, request: Request) -> bool:
        """A request has ended. Returns whether it was waiting, and not running."""
        return self._waiting.remove(request.request_id) is not None
