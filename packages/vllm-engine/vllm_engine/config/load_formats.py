"""Formats of weight files: which this version reads, and which documented ones it does not."""

from vllm_engine.config.groups import LoadConfig
from vllm_engine.config.names import refuse_name

POSSIBLE = ("auto", "hf", "safetensors", "pt", "dummy")
_NO_LOADER = "this version has no loader for it"
_QUANTISED = "this version reads unquantised weights only"
_ELSEWHERE = {
    "bitsandbytes": _QUANTISED,
    "fastsafetensors": _NO_LOADER,
    "gguf": _QUANTISED,
    "instanttensor": _NO_LOADER,
    "ipc_cache": _NO_LOADER,
    "mistral": "this version reads weights under the names of the hub's format, not of consolidated files",
    "modelexpress": _NO_LOADER,
    "npcache": "no second copy of the weights is kept; pt reads the same files",
    "runai_streamer": _NO_LOADER,
    "runai_streamer_sharded": _NO_LOADER,
    "sharded_state": "this version runs on one device",
    "tensorizer": _NO_LOADER,
}


def check_load_format(config: LoadConfig) -> None:
    """Raise ``ConfigError`` for a format that this version does not read."""
    refuse_name("load_format", config.load_format, POSSIBLE, _ELSEWHERE)
