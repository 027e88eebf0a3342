"""Refused requests as a Prometheus metric."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_server.telemetry.snapshot import Family, series_key

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM


class AdmissionMetrics:
    """``vllm:admission_rejections_total``: requests that were turned away, by the limit that was reached."""

    moment = 0.0

    def __init__(self, llm: "AsyncLLM", model_name: str) -> None:
        self._llm = llm
        self._model_name = model_name

    def families(self) -> Iterator[Family]:
        """The counts as they stand now; none before the engine has started."""
        name = "vllm:admission_rejections_total"
        counts = {} if self._llm.admission is None else self._llm.admission.num_rejected
        series: dict[str, float] = {
            series_key(name, ("model_name", "reason"), (self._model_name, reason)): count
            for reason, count in counts.items()
        }
        yield Family(name, "counter", "Requests that were turned away, by the limit that was reached.", "sum", series)
