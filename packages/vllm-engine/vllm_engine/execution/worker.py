"""``Worker``: one device with its share of the model."""

import dataclasses
from functools import partial
from pathlib import Path

import torch

from vllm_engine.config import EngineConfig
from vllm_engine.config.compiler import compiler_backend
from vllm_engine.config.graph_plan import plan_graphs
from vllm_engine.config.kernel_choices import kernel_faces
from vllm_engine.config.model_plan import plan_model
from vllm_engine.execution.batch import BatchResult, NewRequest, ScheduledBatch
from vllm_engine.execution.compiled_layers import CompiledLayers
from vllm_engine.execution.devices import device_for
from vllm_engine.execution.forward_graphs import capture_all, graphs_for
from vllm_engine.execution.graph_memory import graph_bytes
from vllm_engine.execution.kernel_cache import KernelCache
from vllm_engine.execution.kernels_in_use import check_kernels
from vllm_engine.execution.largest_step import largest_step
from vllm_engine.execution.launched import Launched
from vllm_engine.execution.memory import DeviceMemory
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.execution.sleep_mode import SleepMode
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.loading.loader import fill_weights, load_model
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest, SleepTag
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import create_processors
from vllm_kernels.backend import choose_faces

logger = get_logger(__name__)


class Worker:
    """Loads the model onto its device, owns the runner and the cache."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        self._config = config
        self._model_path = model_path
        self.hardware = device_for(config)
        self.device = self.hardware.torch_device
        self._kernel_cache = KernelCache(self.device)
        torch.manual_seed(config.model.seed)
        self._plan = plan_model(config, model_path)
        for warning in self._plan.warnings:
            logger.warning("%s", warning)
        self.decoder = self._plan.decoder
        self.max_model_len = self._plan.max_model_len
        self._faces = kernel_faces(config)
        check_kernels(self._faces, self.device)
        self._processors = create_processors(config)
        self._compiled: CompiledLayers | None = None

    def load_model(self) -> ModelRunner:
        """Read the weights."""
        self.hardware.prepare()
        # Both are settled already: rotary tables and the engine's limits agree, and the device has the data type.
        settings = dataclasses.replace(self._config.model, max_model_len=self.max_model_len, dtype=self._plan.dtype)
        load = self._config.load
        with self.hardware.taking("the weights"):
            model = load_model(self._model_path, self.decoder, settings, load, self.device)
        self.hardware.settle(model.weight_bytes() // self.decoder.num_layers, self.decoder.num_layers)
        backend = compiler_backend(self._config)
        if backend is not None:
            self._compiled = CompiledLayers(model, backend, self._config.compilation.cache_dir)
        self.runner = ModelRunner(
            model,
            vocab_size=self.decoder.vocab_size,
            device=self.device,
            cache_formats=self._plan.cache_formats,
            logprobs_mode=self._config.model.logprobs_mode,
            processors=self._processors,
            graphs_for=partial(graphs_for, self._config),
        )
        self._sleep_mode = SleepMode(
            self.runner, self.hardware, partial(fill_weights, model, self._model_path, settings, load)
        )
        return self.runner

    def memory(self) -> DeviceMemory:
        """The device's memory as it is now."""
        return self.hardware.memory(self.runner.model.weight_bytes())

    def profile(
        self, layout: KVCacheLayout, *, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int
    ) -> DeviceMemory:
        """The device's memory as the largest step will leave it. Not every device computes that step to know.

        Args:
            layout: of a throwaway cache; a block is enough.
            max_num_batched_tokens, max_num_seqs, max_model_len: the most that a step may have.

        Raises:
            NoRoom: where the step does not fit.
        """

        def compute() -> None:
            self.runner.initialize_kv_cache(layout, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
            batch = largest_step(
                num_tokens=max_num_batched_tokens,
                num_requests=max_num_seqs,
                max_model_len=max_model_len,
                num_groups=len(layout.groups),
                block_size=layout.block_size,
            )
            self._try(batch)

        def graphs(activations: int) -> int:
            return graph_bytes(
                plan_graphs(self._config, max_num_seqs),
                num_layers=self.decoder.num_layers,
                activations=activations,
                num_tokens=max_num_batched_tokens,
            )

        what = f"a step of {max_num_batched_tokens} tokens in {max_num_seqs} requests"
        return self.hardware.profile(self.runner.model.weight_bytes(), compute, what, graphs)

    def _try(self, batch: ScheduledBatch) -> None:
        """Compute a batch of nobody's requests, and forget it. A user's own code sees only what somebody asked for."""
        self.runner.processors = ()
        try:
            with choose_faces(self._faces):
                self.runner.execute(batch)
        finally:
            self.runner.reset()
            self.runner.processors = self._processors

    def initialize_kv_cache(self, layout: KVCacheLayout, *, max_num_seqs: int, max_model_len: int) -> None:
        """Allocate the cache. ``max_model_len`` is what is served in the end: no more than was planned."""
        if max_model_len != self.max_model_len:
            self.max_model_len = max_model_len
            self.runner.model.fit_positions(max_model_len)
        with self.hardware.taking(f"a KV cache of {layout.num_blocks} blocks"):
            self.runner.initialize_kv_cache(layout, max_num_seqs=max_num_seqs, max_model_len=max_model_len)

    def warm_up(self) -> None:
        """Run a prefill and a decode step, so that the first request does not pay for lazy set-up.

        On a GPU also a few tokens after a context as long as there may be, which other kernels are compiled for.
        """
        self._try_prompt(min(8, self.max_model_len), 0)
        new_tokens = min(32, self.max_model_len, self._config.scheduler.max_num_batched_tokens or 32)
        if self.device.type == "cuda" and self.max_model_len > new_tokens:
            self._try_prompt(new_tokens, self.max_model_len - new_tokens)
        if self._compiled is not None:
            self._compiled.tell()
        self.runner.capture_when_needed()
        if not self.has_graphs_to_capture:
            self._kernel_cache.started()

    def _try_prompt(self, new_tokens: int, context: int) -> None:
        """Compute ``new_tokens`` tokens after ``context`` ones, of a request of nobody's."""
        request = EngineRequest("warm-up", [0] * (context + new_tokens), SamplingParams(), 1, 0, [], [], [])
        groups = len(self.runner.batch.block_tables)
        # Block 0 belongs to nobody: what warm-up writes there is never read.
        blocks = [[0] * -(-len(request.prompt_token_ids) // self.runner.batch.block_size) for _ in range(groups)]
        new = NewRequest(request, list(request.prompt_token_ids), blocks, context, False)
        self._try(ScheduledBatch(new_requests=[new], num_scheduled_tokens={"warm-up": new_tokens}))

    @property
    def has_graphs_to_capture(self) -> bool:
        """Whether graphs are to be captured before the engine is ready."""
        return self.runner.graphs is not None and self.runner.graphs.at_start

    @property
    def has_graphs_left(self) -> bool:
        """Whether there are graphs to capture while the engine has nothing to do."""
        return self.runner.graphs is not None and self.runner.graphs.pending

    def capture_graphs(self) -> None:
        """Capture all of them."""
        if self.runner.graphs is not None:
            with choose_faces(self._faces):
                capture_all(self.runner.graphs)
        self._kernel_cache.started()

    def capture_next_graph(self) -> None:
        """Capture one of them."""
        if self.has_graphs_left and self.runner.graphs is not None:
            with choose_faces(self._faces):
                self.runner.graphs.capture_next()

    def execute(self, batch: ScheduledBatch) -> BatchResult:
        """Compute one batch."""
        return self._launch(batch).wait()

    def launch(self, batch: ScheduledBatch) -> Launched:
        """As ``execute``, but where the device works by itself, it is not waited for."""
        if type(self).execute is not Worker.execute:  # a user's own worker wants to see each step
            return Launched.done(self.execute(batch))
        return self._launch(batch)

    def _launch(self, batch: ScheduledBatch) -> Launched:
        self._sleep_mode.check_awake()
        computing = self.hardware.computing(batch.total_num_tokens, len(batch.new_requests))
        with choose_faces(self._faces), computing:
            return self.runner.launch(batch)

    def sleep(self, level: int) -> None:
        """Give memory back, that of the weights included; see ``SleepMode.sleep``. No step may be under way."""
        self._sleep_mode.sleep(level)

    def release_kv_cache_memory(self) -> None:
        """Give the memory of the KV cache alone back. No step may be under way."""
        self._sleep_mode.release_kv_cache()

    def wake_up(self, tag: SleepTag) -> None:
        """Take the memory of weights or KV cache again; see ``SleepMode.wake_up``."""
        self._sleep_mode.wake_up(tag)
        self._capture_again()

    def reload_weights(self) -> None:
        """Read the weights again from where they came from; see ``SleepMode.reload_weights``."""
        self._sleep_mode.reload_weights()
        self._capture_again()

    def _capture_again(self) -> None:
        """As at start, where memory is at other addresses now."""
        if self.has_graphs_to_capture:
            self.capture_graphs()

    def reset(self) -> None:
        """Forget all requests, after a failed step."""
        self.runner.reset()

    def shutdown(self) -> None:
        """Undo what the device did to the thread, which may be its user's own."""
        self._kernel_cache.close()
        self.hardware.shutdown()
