"""What a stream of ``/v1/responses`` must be, by the official client's own types."""

from collections.abc import Iterable
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
START = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
DELTA = "response.output_text.delta"


def strict(response: Response) -> Response:
    """The same response, checked: the client itself takes any fields."""
    return Response.model_validate_json(response.model_dump_json(warnings="error"))


def check_events(events: Iterable[Any], end: str, *, background: bool = False) -> Response:
    """Hold a whole stream to its grammar, and its parts to each other. Returns the last event's response."""
    events = [EVENT.validate_python(event.model_dump()) for event in events]
    kinds = [event.type for event in events]
    deltas = kinds.count(DELTA)
    start = ["response.created", "response.queued", *START[1:]] if background else START
    assert kinds == [*start, *[DELTA] * deltas, *END, end]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == DELTA)
    logprobs = [item for event in events if event.type == DELTA for item in event.logprobs]
    added, part_added = events[len(start) - 2 : len(start)]
    done, part_done, item_done, last = events[-4:]
    item_id = added.item.id
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {item_id}
    assert (added.item.status, added.item.content) == ("in_progress", [])
    assert (part_added.part.text, part_done.part.text, done.text) == ("", text, text)
    assert [item.token for item in done.logprobs] == [item.token for item in logprobs]
    assert last.response.output == [item_done.item]
    assert (item_done.item.id, item_done.item.content) == (item_id, [part_done.part])
    first = events[0].response
    assert first.status == ("queued" if background else "in_progress")
    assert (first.output, first.usage) == ([], None)
    assert last.response.status == end.removeprefix("response.")
    assert {event.response.id for event in events if hasattr(event, "response")} == {first.id}
    assert last.response.output_text == text
    response: Response = last.response
    return response
