"""Classes that the tests name in ``scheduler_cls``, ``worker_cls`` and ``worker_extension_cls``."""

import time
from typing import Any

from vllm_engine.core.scheduler import Scheduler
from vllm_engine.execution.batch import ScheduledBatch
from vllm_engine.execution.worker import Worker


class OneAtATime(Scheduler):
    """Runs no more requests at once than its user says."""

    def schedule(self) -> ScheduledBatch:
        self._max_num_seqs = self.config.additional_config["at_once"]
        return super().schedule()


class CountingWorker(Worker):
    """Counts its steps."""

    num_steps = 0

    def execute(self, batch: ScheduledBatch) -> Any:
        self.num_steps += 1
        return super().execute(batch)


class Extension:
    """Adds methods."""

    answer = 42

    def weights_of(self, name: str, *, scale: int = 1) -> list[float]:
        """The first weights of a parameter."""
        parameter = dict(self.runner.model.named_parameters())[name]  # type: ignore[attr-defined]
        return [scale * value for value in parameter.flatten()[:2].tolist()]

    def rest(self, seconds: float) -> None:
        """Take long."""
        time.sleep(seconds)

    def fail(self) -> None:
        """Raise."""
        raise ArithmeticError("as asked")


class Overrides:
    """Has a method that the worker has."""

    def warm_up(self) -> None:
        """Nothing."""


class Shadows:
    """Has a name that a worker gives itself when it is made."""

    def device(self) -> str:
        """Anything."""
        return "mine"


class WithInit:
    """Would never be initialised."""

    def __init__(self) -> None:
        self.ready = True


class Final:
    """Lets nobody derive from it."""

    def __init_subclass__(cls) -> None:
        raise TypeError("there are no classes of this one")


NOT_A_CLASS = 1
