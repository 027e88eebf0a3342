"""The APIs that a server is asked through, one module each: builds a request's body, reads its answer."""

from importlib import import_module

from vllm_bench.endpoints.endpoint import Endpoint

ENDPOINTS = {
    "openai": "vllm_bench.endpoints.completions",
    "vllm": "vllm_bench.endpoints.completions",
    "openai-chat": "vllm_bench.endpoints.chat",
}
"""Name of a ``--backend`` -> the module that holds its ``ENDPOINT``."""


def load(backend: str) -> Endpoint:
    """The endpoint of that name, one of ``ENDPOINTS``."""
    endpoint: Endpoint = import_module(ENDPOINTS[backend]).ENDPOINT
    return endpoint
