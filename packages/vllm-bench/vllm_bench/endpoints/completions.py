"""``/v1/completions``: a text, or token ids, and what follows."""

from collections.abc import Mapping
from typing import Any

from vllm_bench.endpoints import generated
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, WorkItem


class Completions:
    """See ``Endpoint``."""

    path = "/v1/completions"
    generates = True
    takes_template = False

    def body(self, item: WorkItem, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(item.prompt, Messages):
            raise ValueError("a conversation needs --backend openai-chat or openai-responses")
        if not isinstance(item.prompt, str | list):
            raise ValueError("several texts in one request need --backend openai-embeddings or vllm-rerank")
        own = {} if item.output_len is None else {"max_tokens": item.output_len}
        return {"model": model, "prompt": item.prompt, **generated.STREAMING, **own, **options, **item.extra}

    def read(self, content: Any, now: float, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None:
            text = _text(content)
            if text or generated.has_silent_token(content["choices"]):
                record.add_chunk(now, text)
            generated.read_usage(content, record)

    def read_whole(self, content: Any, record: RequestRecord) -> None:
        record.error = generated.error_of(content)
        if record.error is None:
            record.texts.append(_text(content))
            generated.read_usage(content, record)

    def complaint(self, record: RequestRecord) -> str | None:
        return generated.complaint(record)


def _text(content: dict[str, Any]) -> str:
    choices = content["choices"]
    if len(choices) == 1:
        text: str | None = choices[0].get("text")
        return text or ""
    return "".join(choice.get("text") or "" for choice in choices)


ENDPOINT = Completions()
