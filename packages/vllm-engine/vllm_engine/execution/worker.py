"""``Worker``: one device with its share of the model."""

import dataclasses
import os
from pathlib import Path

import psutil
import torch

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_engine.config.decoder import DecoderConfig, default_max_model_len
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.errors import ConfigError
from vllm_engine.execution.batch import BatchResult, NewRequest, ScheduledBatch
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.execution.threads import num_threads
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.loading.loader import load_model
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams

logger = get_logger(__name__)

FREE_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take when nothing is said: other programs live on the machine too."""


class Worker:
    """Loads the model onto its device, owns the runner and the cache."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self.device = torch.device("cpu")
        torch.manual_seed(config.model.seed)
        self.decoder: DecoderConfig = load_decoder_config(model_path, config.model.hf_overrides)
        self.max_model_len = _max_model_len(config, self.decoder)

    def load_model(self) -> ModelRunner:
        """Read the weights."""
        # The length is settled here, so that rotary tables and the engine's limits agree.
        settings = dataclasses.replace(self._config.model, max_model_len=self.max_model_len)
        model = load_model(self._model_path, self.decoder, settings, self._config.load, self.device)
        if "OMP_NUM_THREADS" not in os.environ:
            layer_bytes = sum(p.nbytes for p in model.parameters()) // self.decoder.num_layers
            torch.set_num_threads(num_threads(layer_bytes, usable_cores()))
        self.runner = ModelRunner(model, vocab_size=self.decoder.vocab_size, device=self.device)
        return self.runner

    def available_memory(self) -> int:
        """Bytes that the KV cache may take: ``VLLM_CPU_KVCACHE_SPACE``, or a share of what is free now."""
        asked: float | None = envs.get("VLLM_CPU_KVCACHE_SPACE")
        if asked is not None:
            return int(asked * 2**30)
        return int(free_memory() * FREE_MEMORY_SHARE)

    def free_memory(self) -> int:
        """Bytes that are free now."""
        return free_memory()

    def initialize_kv_cache(self, layout: KVCacheLayout, *, max_num_seqs: int) -> None:
        """Allocate the cache."""
        self.runner.initialize_kv_cache(layout, max_num_seqs=max_num_seqs, max_model_len=self.max_model_len)

    def warm_up(self) -> None:
        """Run one prefill and one decode step, so that the first request does not pay for lazy set-up."""
        request = EngineRequest("warm-up", [0] * min(8, self.max_model_len), SamplingParams(), 1, 0, [], [], [])
        groups = len(self.runner.batch.block_tables)
        # Block 0 belongs to nobody: what warm-up writes there is never read.
        blocks = [[0] * -(-len(request.prompt_token_ids) // self.runner.batch.block_size) for _ in range(groups)]
        new = NewRequest(request, list(request.prompt_token_ids), blocks, 0, False)
        self.runner.execute(ScheduledBatch(new_requests=[new], num_scheduled_tokens={"warm-up": len(new.token_ids)}))
        self.runner.reset()

    def execute(self, batch: ScheduledBatch) -> BatchResult:
        """Compute one batch."""
        return self.runner.execute(batch)

    def reset(self) -> None:
        """Forget all requests, after a failed step."""
        self.runner.reset()


def _max_model_len(config: EngineConfig, decoder: DecoderConfig) -> int:
    """The length to serve: what was asked, if the model can do it.

    Raises:
        ConfigError: when more is asked than the positions that the model was made for.
    """
    longest = default_max_model_len(decoder)
    asked = config.model.max_model_len
    if asked is not None and asked > longest:
        raise ConfigError(
            f"max_model_len={asked} is more than the {longest} positions of the model", field="max_model_len"
        )
    return asked or longest


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def free_memory() -> int:
    """Bytes that can still be taken: what the machine has available, cut by the cgroup's limit."""
    available = int(psutil.virtual_memory().available)
    limit, used = _read_words("/sys/fs/cgroup/memory.max"), _read_words("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        available = min(available, int(limit[0]) - int(used[0]))
    return max(0, available)


def _read_words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []
