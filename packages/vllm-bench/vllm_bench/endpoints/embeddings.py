"""``/v1/embeddings`` and those of the same form: texts or token ids, and a vector for each."""

from typing import Any

from vllm_bench.endpoints import generated
from vllm_bench.endpoints.pooled import Pooled
from vllm_bench.workload.item import Messages, Ranking, Texts, WorkItem


class Embeddings(Pooled):
    """See ``Endpoint``."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "data")

    def question(self, item: WorkItem) -> dict[str, Any]:
        """See ``Pooled``."""
        if isinstance(item.prompt, Messages):
            raise ValueError("a conversation needs --backend openai-embeddings-chat")
        if isinstance(item.prompt, Ranking):
            raise ValueError("a query with documents needs --backend vllm-rerank")
        return {"input": list(item.prompt) if isinstance(item.prompt, Texts) else item.prompt}


class ChatEmbeddings(Embeddings):
    """The vector of a conversation, as the model's chat template writes it."""

    takes_template = True

    def question(self, item: WorkItem) -> dict[str, Any]:
        """See ``Pooled``."""
        return {"messages": generated.messages_of(item, "openai-embeddings-chat")}


OPENAI = Embeddings("/v1/embeddings")
CHAT = ChatEmbeddings("/v1/embeddings")
POOLING = Embeddings("/pooling")
INFINITY = Embeddings("/embeddings")
