"""The APIs that a server is asked through: each builds a request's body and reads its answer."""

from importlib import import_module

from vllm_bench.endpoints.endpoint import Endpoint

_COMPLETIONS = "vllm_bench.endpoints.completions:ENDPOINT"
_EMBEDDINGS = "vllm_bench.endpoints.embeddings"

ENDPOINTS = {
    "openai": _COMPLETIONS,
    "vllm": _COMPLETIONS,
    "openai-chat": "vllm_bench.endpoints.chat:ENDPOINT",
    "openai-responses": "vllm_bench.endpoints.responses:ENDPOINT",
    "openai-embeddings": f"{_EMBEDDINGS}:OPENAI",
    "openai-embeddings-chat": f"{_EMBEDDINGS}:CHAT",
    "infinity-embeddings": f"{_EMBEDDINGS}:INFINITY",
    "vllm-pooling": f"{_EMBEDDINGS}:POOLING",
    "vllm-rerank": "vllm_bench.endpoints.rerank:ENDPOINT",
}
"""Name of a ``--backend`` -> the module and name of its ``Endpoint``."""


def load(backend: str) -> Endpoint:
    """The endpoint of that name, one of ``ENDPOINTS``."""
    module, _, name = ENDPOINTS[backend].partition(":")
    endpoint: Endpoint = getattr(import_module(module), name)
    return endpoint
