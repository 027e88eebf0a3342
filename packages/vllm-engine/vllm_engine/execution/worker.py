"""``Worker``: one device with its share of the model."""

import dataclasses
import os
from pathlib import Path

import torch

from vllm_engine.config import EngineConfig
from vllm_engine.config.kernel_choices import kernel_faces
from vllm_engine.config.model_plan import plan_model
from vllm_engine.execution.batch import BatchResult, NewRequest, ScheduledBatch
from vllm_engine.execution.cores import usable_nodes
from vllm_engine.execution.heap import keep_freed_memory
from vllm_engine.execution.kernels_in_use import check_kernels, tell_kernels
from vllm_engine.execution.launched import Launched
from vllm_engine.execution.memory import DeviceMemory, main_memory
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.execution.step_threads import StepThreads
from vllm_engine.execution.thread_binding import ThreadBinding
from vllm_engine.execution.thread_plan import plan_for_this_machine
from vllm_engine.execution.threads import num_threads
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.loading.loader import load_model
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import create_processors
from vllm_kernels.backend import choose_faces

logger = get_logger(__name__)


class Worker:
    """Loads the model onto its device, owns the runner and the cache."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self.device = torch.device("cpu")
        keep_freed_memory()
        torch.manual_seed(config.model.seed)
        self._plan = plan_model(config, model_path)
        for warning in self._plan.warnings:
            logger.warning("%s", warning)
        self.decoder = self._plan.decoder
        self.max_model_len = self._plan.max_model_len
        self._faces = kernel_faces(config)
        check_kernels(self._faces)
        self._threads_asked = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None
        self._threads = plan_for_this_machine(self._threads_asked)
        self._binding = ThreadBinding(self._threads)
        self._processors = create_processors(config)

    def load_model(self) -> ModelRunner:
        """Read the weights."""
        self._binding.bind_caller()
        # The length is settled already, so that rotary tables and the engine's limits agree.
        settings = dataclasses.replace(self._config.model, max_model_len=self.max_model_len)
        model = load_model(self._model_path, self.decoder, settings, self._config.load, self.device)
        self._start_threads(model.weight_bytes() // self.decoder.num_layers)
        self.runner = ModelRunner(
            model,
            vocab_size=self.decoder.vocab_size,
            device=self.device,
            cache_formats=self._plan.cache_formats,
            logprobs_mode=self._config.model.logprobs_mode,
            processors=self._processors,
            use_graphs=not self._config.model.enforce_eager,
        )
        return self.runner

    def _start_threads(self, layer_bytes: int) -> None:
        """Settle how many threads compute, and put each where it belongs."""
        most = count = self._threads.count
        if self._threads_asked is None and not self._threads.one_each:
            count = num_threads(layer_bytes, count)
        self._step_threads = StepThreads(count, most, layer_bytes)
        torch.set_num_threads(count)
        self._binding.bind_team(count)
        tell_kernels(count, self._threads.words)

    def memory(self) -> DeviceMemory:
        """The device's memory as it is now: that of the NUMA nodes where the worker's belongs."""
        nodes = usable_nodes(self._threads.cores) if self._threads.cores and self._threads.memory_nodes else None
        return main_memory(weights=self.runner.model.weight_bytes(), nodes=nodes)

    def initialize_kv_cache(self, layout: KVCacheLayout, *, max_num_seqs: int, max_model_len: int) -> None:
        """Allocate the cache. ``max_model_len`` is what is served in the end: no more than was planned."""
        if max_model_len != self.max_model_len:
            self.max_model_len = max_model_len
            self.runner.model.fit_positions(max_model_len)
        self.runner.initialize_kv_cache(layout, max_num_seqs=max_num_seqs, max_model_len=max_model_len)

    def warm_up(self) -> None:
        """Run one prefill and one decode step, so that the first request does not pay for lazy set-up."""
        request = EngineRequest("warm-up", [0] * min(8, self.max_model_len), SamplingParams(), 1, 0, [], [], [])
        groups = len(self.runner.batch.block_tables)
        # Block 0 belongs to nobody: what warm-up writes there is never read.
        blocks = [[0] * -(-len(request.prompt_token_ids) // self.runner.batch.block_size) for _ in range(groups)]
        new = NewRequest(request, list(request.prompt_token_ids), blocks, 0, False)
        self.runner.processors = ()  # a user's own code sees only requests that somebody made
        batch = ScheduledBatch(new_requests=[new], num_scheduled_tokens={"warm-up": len(new.token_ids)})
        with choose_faces(self._faces):
            self.runner.execute(batch)
        self.runner.reset()
        self.runner.processors = self._processors

    def execute(self, batch: ScheduledBatch) -> BatchResult:
        """Compute one batch."""
        return self._launch(batch).wait()

    def launch(self, batch: ScheduledBatch) -> Launched:
        """As ``execute``, but where the device works by itself, it is not waited for."""
        if type(self).execute is not Worker.execute:  # a user's own worker wants to see each step
            return Launched.done(self.execute(batch))
        return self._launch(batch)

    def _launch(self, batch: ScheduledBatch) -> Launched:
        with choose_faces(self._faces), self._step_threads.computing(batch.total_num_tokens):
            return self.runner.launch(batch)

    def release_kv_cache(self) -> None:
        """Give the memory of the cache back; it holds nothing then, and takes memory again as it is written."""
        self.runner.release_kv_cache()

    def reset(self) -> None:
        """Forget all requests, after a failed step."""
        self.runner.reset()

    def shutdown(self) -> None:
        """Give the threads, one of which may be its user's own, the cores back that they had."""
        self._binding.undo()
