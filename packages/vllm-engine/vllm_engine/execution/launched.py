"""``Launched``: a step whose kernels are under way."""

from collections.abc import Callable

from vllm_engine.execution.batch import BatchResult


class Launched:
    """A step under way on its device.

    Args:
        finish: waits for it, and takes in what it computed. Called once.
    """

    def __init__(self, finish: Callable[[], BatchResult]) -> None:
        self._finish: Callable[[], BatchResult] | None = finish
        self._result: BatchResult | None = None

    @classmethod
    def done(cls, result: BatchResult) -> "Launched":
        """A step that is over."""
        return cls(lambda: result)

    def wait(self) -> BatchResult:
        """What it computed; the same again when asked again.

        Raises whatever the step raises. It is not to be asked again then.
        """
        if self._finish is not None:
            finish, self._finish = self._finish, None
            self._result = finish()
        if self._result is None:
            raise RuntimeError("this step has failed")
        return self._result
