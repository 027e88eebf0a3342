"""``/v1/chat/completions``: messages, and the assistant's answer."""

from collections.abc import Mapping
from typing import Any

from vllm_bench.endpoints import generated
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, WorkItem


class Chat:
    """See ``Endpoint``."""

    path = "/v1/chat/completions"
    streamed = True

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(item.prompt, Messages):
            messages = list(item.prompt)
        elif isinstance(item.prompt, str):
            messages = [{"role": "user", "content": item.prompt}]
        else:
            raise ValueError("token ids need --backend openai: a chat takes text")
        own = {} if item.output_len is None else {"max_completion_tokens": item.output_len}
        return {"model": model, "messages": messages, **generated.STREAMING, **own, **options, **item.extra}

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None:
            deltas = [choice.get("delta") or {} for choice in content["choices"]]
            text = "".join(delta.get("content") or "" for delta in deltas)
            # A reasoning model's first words are words too; only the answer goes into the next turn.
            if text or any(delta.get("reasoning_content") or delta.get("reasoning") for delta in deltas):
                record.add_chunk(now, text)
            generated.read_usage(content, record)

    def complaint(self, record: RequestRecord) -> str | None:
        return generated.complaint(record)


ENDPOINT = Chat()
