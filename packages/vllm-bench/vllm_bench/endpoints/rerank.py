"""``/v1/rerank``: a query with documents, and a score for each of these."""

from typing import Any

from vllm_bench.endpoints.pooled import Pooled
from vllm_bench.workload.item import Ranking, WorkItem


class Rerank(Pooled):
    """See ``Endpoint``."""

    def __init__(self) -> None:
        super().__init__("/v1/rerank", "results")

    def question(self, item: WorkItem) -> dict[str, Any]:
        """See ``Pooled``."""
        if not isinstance(item.prompt, Ranking):
            raise ValueError("--backend vllm-rerank needs a query with documents, as of --dataset-name random-rerank")
        return {"query": item.prompt.query, "documents": list(item.prompt.documents)}


ENDPOINT = Rerank()
