"""Refused requests as a Prometheus metric."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM


class AdmissionMetrics(Collector):
    """``vllm:admission_rejections_total``: requests that were turned away, by the limit that was reached."""

    def __init__(self, llm: "AsyncLLM", model_name: str) -> None:
        self._llm = llm
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """The counts as they stand now; none before the engine has started."""
        family = CounterMetricFamily(
            "vllm:admission_rejections",
            "Requests that were turned away, by the limit that was reached.",
            labels=("model_name", "reason"),
        )
        if self._llm.admission is not None:
            for reason, count in self._llm.admission.num_rejected.items():
                family.add_metric((self._model_name, reason), count)
        yield family
