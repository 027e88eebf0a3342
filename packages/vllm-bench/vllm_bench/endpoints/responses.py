"""``/v1/responses``: messages, and a stream of typed events, of which the last one has the token counts."""

from collections.abc import Mapping
from typing import Any

from vllm_bench.endpoints import generated
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem

_TEXT = "response.output_text.delta"
_ENDS = ("response.completed", "response.incomplete")
_FAILURES = ("response.failed", "response.cancelled", "error")


class Responses:
    """See ``Endpoint``."""

    path = "/v1/responses"
    generates = True
    takes_template = True

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        messages = generated.messages_of(item, "a response")
        own = {} if item.output_len is None else {"max_output_tokens": item.output_len}
        options = {**options, **item.extra}
        count = generated.wanted_logprobs(options)
        if count is not None:
            del options["logprobs"]
            options |= {"top_logprobs": count, "include": ["message.output_text.logprobs"]}
        # Answers of a benchmark are nothing that a server should keep.
        return {"model": model, "input": messages, "stream": True, "store": False, **own, **options}

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        kind = content["type"]
        if kind in _FAILURES:
            response = content.get("response") or {}
            record.error = generated.error_of({"error": content.get("error") or response.get("error") or content})
        elif kind in _ENDS:
            _read_usage(content["response"], record)
            record.finished = True
        elif kind.endswith(".delta") and content.get("delta"):
            # Thoughts and arguments of tools are tokens too.
            record.add_chunk(now, content["delta"] if kind == _TEXT else "")

    def read_whole(self, content: Any, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None and content.get("status") in ("failed", "cancelled"):
            record.error = f"the response has {content['status']}"
        if record.error is None:
            parts = [part for message in content["output"] for part in message.get("content") or []]
            record.texts += [part["text"] for part in parts if part.get("type") == "output_text"]
            _read_usage(content, record)

    def complaint(self, record: RequestRecord) -> str | None:
        return generated.complaint(record)


def _read_usage(response: dict[str, Any], record: RequestRecord) -> None:
    usage = response.get("usage")
    if usage:
        record.prompt_tokens = usage.get("input_tokens")
        record.completion_tokens = usage.get("output_tokens")


ENDPOINT = Responses()
