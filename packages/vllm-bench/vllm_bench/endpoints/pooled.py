"""What APIs have in common that answer with vectors or scores: one JSON object, which comes as a whole."""

from collections.abc import Mapping
from typing import Any

from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


class Pooled:
    """Everything of an ``Endpoint`` but the form of the question.

    Args:
        path: where it is found.
        answers: the field of the answer that has an entry for each input.
    """

    generates = False
    takes_template = False

    def __init__(self, path: str, answers: str) -> None:
        self.path = path
        self._answers = answers

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Endpoint``."""
        return {"model": model, **self.question(item), **options, **item.extra}

    def question(self, item: WorkItem) -> dict[str, Any]:
        """The fields of the body that are the item's own.

        Raises:
            ValueError: this API cannot carry the item's prompt.
        """
        raise NotImplementedError

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        """See ``Endpoint``."""
        raise ValueError("a stream of events")

    def read_whole(self, content: Any, record: RequestRecord) -> None:
        """See ``Endpoint``."""
        if content.get("error") is not None:
            raise ValueError(str(content["error"])[:200])
        answers = content[self._answers]
        if not isinstance(answers, list) or not answers:
            raise ValueError(f"{self._answers!r} is empty")
        usage = content.get("usage") or {}
        # Some servers have nothing but the total; there is no output that could be in it.
        record.prompt_tokens = usage.get("prompt_tokens") or usage.get("total_tokens")

    def complaint(self, record: RequestRecord) -> str | None:
        """See ``Endpoint``."""
        return None
