"""``/v1/chat/completions``: messages, and the assistant's answer."""

from collections.abc import Mapping
from typing import Any

from vllm_bench.endpoints import generated
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import WorkItem


class Chat:
    """See ``Endpoint``."""

    path = "/v1/chat/completions"
    generates = True
    takes_template = True

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        messages = generated.messages_of(item, "a chat")
        own = {} if item.output_len is None else {"max_completion_tokens": item.output_len}
        options = {**options, **item.extra}
        count = generated.wanted_logprobs(options)
        if count is not None:
            options |= {"logprobs": True, "top_logprobs": count}
        return {"model": model, "messages": messages, **generated.STREAMING, **own, **options}

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None:
            deltas = [choice.get("delta") or {} for choice in content["choices"]]
            text = "".join(delta.get("content") or "" for delta in deltas)
            # A reasoning model's first words are words too; only the answer goes into the next turn.
            thinks = any(delta.get("reasoning_content") or delta.get("reasoning") for delta in deltas)
            if text or thinks or generated.has_silent_token(content["choices"]):
                record.add_chunk(now, text)
            generated.read_usage(content, record)

    def read_whole(self, content: Any, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None:
            record.texts.append("".join(choice["message"].get("content") or "" for choice in content["choices"]))
            generated.read_usage(content, record)

    def complaint(self, record: RequestRecord) -> str | None:
        return generated.complaint(record)


ENDPOINT = Chat()
