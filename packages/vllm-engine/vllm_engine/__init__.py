"""The LLM inference engine: requests in, tokens out.

The public names are loaded on first use, so that ``import vllm_engine`` imports neither torch nor a tokenizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_engine.config import EngineArgs, EngineConfig
    from vllm_engine.llm import LLM
    from vllm_engine.outputs import CompletionOutput, Logprob, RequestOutput
    from vllm_engine.params import OutputKind, SamplingParams
    from vllm_engine.sampling.processors import LogitsProcessor

_HOMES = {
    "LLM": "vllm_engine.llm",
    "AsyncLLM": "vllm_engine.async_llm",
    "EngineArgs": "vllm_engine.config",
    "EngineConfig": "vllm_engine.config",
    "SamplingParams": "vllm_engine.params",
    "LogitsProcessor": "vllm_engine.sampling.processors",
    "OutputKind": "vllm_engine.params",
    "RequestOutput": "vllm_engine.outputs",
    "CompletionOutput": "vllm_engine.outputs",
    "Logprob": "vllm_engine.outputs",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineArgs",
    "EngineConfig",
    "LogitsProcessor",
    "Logprob",
    "OutputKind",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vllm_engine' has no attribute {name!r}")
    return getattr(import_module(home), name)
