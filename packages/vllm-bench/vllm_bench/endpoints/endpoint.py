"""What an API has to know so that it can be measured."""

from collections.abc import Mapping
from typing import Any, Protocol

from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


class Endpoint(Protocol):
    """One API. Holds nothing of a request: what was read goes into its record."""

    path: str
    """Where it is found below the server's address, unless ``--endpoint`` says otherwise."""
    generates: bool
    """It answers with text, which is made token by token; else with vectors or scores."""
    takes_template: bool
    """The server makes the prompt with the model's chat template."""

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body of a request: the item's own, and the ``options`` that all requests share.

        With ``stream`` in it the answer is a stream of events, else one JSON object.

        Raises:
            ValueError: this API cannot carry the item's prompt.
        """

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        """Take in the JSON of one event of a stream, which came at ``now``.

        Whatever a strange server sends may raise ``LookupError``, ``TypeError``, ``ValueError`` or ``AttributeError``.
        A stream whose end is not ``[DONE]`` sets ``record.finished`` at its last event.
        """

    def read_whole(self, content: Any, record: RequestRecord) -> None:
        """Take in the JSON of an answer that is no stream; may raise the same."""

    def complaint(self, record: RequestRecord) -> str | None:
        """Why an answer that came to its end is none all the same; None if it is one."""
