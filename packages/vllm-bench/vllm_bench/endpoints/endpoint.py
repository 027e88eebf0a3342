"""What an API has to know so that it can be measured."""

from collections.abc import Mapping
from typing import Any, Protocol

from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


class Endpoint(Protocol):
    """One API. Holds nothing of a request: what was read goes into its record."""

    path: str
    """Where it is found below the server's address, unless ``--endpoint`` says otherwise."""
    streamed: bool
    """The answer is a stream of events; else it is one JSON object."""

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body of a request: the item's own, and the ``options`` that all requests share.

        Raises:
            ValueError: this API cannot carry the item's prompt.
        """

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        """Take in the JSON of one event of a stream (or of the whole answer), which came at ``now``.

        Whatever a strange server sends may raise ``LookupError``, ``TypeError``, ``ValueError`` or ``AttributeError``.
        A stream whose end is not ``[DONE]`` sets ``record.finished`` at its last event.
        """

    def complaint(self, record: RequestRecord) -> str | None:
        """Why an answer that came to its end is none all the same; None if it is one."""
