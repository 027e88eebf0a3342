"""Executors: how a batch reaches the workers. Only an executor knows how many there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_engine.config import EngineConfig
from vllm_engine.config.profiling import profiler_in_force
from vllm_engine.errors import EngineDead, InvalidRequest, shown
from vllm_engine.execution.batch import BatchResult, ScheduledBatch
from vllm_engine.execution.launched import Launched
from vllm_engine.execution.memory import DeviceMemory
from vllm_engine.execution.profiler import StepProfiler
from vllm_engine.execution.threads import limit_spinning
from vllm_engine.kv_layout import KVCacheLayout, LayerKVSpec
from vllm_engine.messages import EmbedsSpec, SleepTag

if TYPE_CHECKING:
    from vllm_engine.execution.worker import Worker


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What the engine core needs to know of the model; ``kv_specs`` by layer, ``embeds`` of prompts as embeddings."""

    vocab_size: int
    max_model_len: int
    kv_specs: list[LayerKVSpec]
    embeds: EmbedsSpec | None = None


class UniExecutor:
    """One worker, in this process."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        """Set up the device. Raises ``ConfigError`` for a model or setting that cannot be honoured."""
        limit_spinning()
        from vllm_engine.execution.custom_worker import make_worker  # torch comes in here

        profiler = profiler_in_force(config.profiler)
        self._profiler = None if profiler is None else StepProfiler(profiler, config.device.kind)
        self._worker: Worker | None = make_worker(config, model_path)

    @property
    def worker(self) -> "Worker":
        """The worker. Raises ``EngineDead`` after ``shutdown``: another thread may call that during a step."""
        if self._worker is None:
            raise EngineDead("the engine is closed")
        return self._worker

    def load_model(self) -> LoadedModel:
        """Read the weights."""
        runner = self.worker.load_model()
        return LoadedModel(
            vocab_size=self.worker.decoder.vocab_size,
            max_model_len=self.worker.max_model_len,
            kv_specs=runner.kv_specs(),
            embeds=runner.model.embeds_spec(),
        )

    def memory(self) -> DeviceMemory:
        """The device's memory as it is now."""
        return self.worker.memory()

    def profile(
        self, layout: KVCacheLayout, *, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int
    ) -> DeviceMemory:
        """The device's memory as the largest step will leave it, on a throwaway cache of ``layout``.

        Raises:
            NoRoom: where that step does not fit.
        """
        return self.worker.profile(
            layout,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
        )

    def initialize_kv_cache(self, layout: KVCacheLayout, *, max_num_seqs: int, max_model_len: int) -> None:
        """Allocate the cache, for requests of at most ``max_model_len`` tokens."""
        self.worker.initialize_kv_cache(layout, max_num_seqs=max_num_seqs, max_model_len=max_model_len)

    def warm_up(self) -> None:
        """Pay for lazy set-up before the first request."""
        self.worker.warm_up()

    @property
    def has_graphs_to_capture(self) -> bool:
        """Whether graphs are to be captured before the engine is ready."""
        return self.worker.has_graphs_to_capture

    @property
    def has_graphs_left(self) -> bool:
        """Whether there are graphs to capture while there is nothing to do."""
        return self.worker.has_graphs_left

    def capture_graphs(self) -> None:
        """Capture all of them."""
        self.worker.capture_graphs()

    def capture_next_graph(self) -> None:
        """Capture one of them."""
        self.worker.capture_next_graph()

    def execute(self, batch: ScheduledBatch) -> BatchResult:
        """Compute one batch. Raises whatever the model raises; call ``reset`` then."""
        return self.launch(batch).wait()

    def launch(self, batch: ScheduledBatch) -> Launched:
        """As ``execute``, but where the device works by itself, it is not waited for."""
        if self._profiler is None:
            return self.worker.launch(batch)
        num_tokens = batch.num_scheduled_tokens
        with self._profiler.step(len(num_tokens), sum(num_tokens.values())):
            return self.worker.launch(batch)

    def start_profile(self) -> bool | None:
        """Record the steps from now on. False when that is so already, None without a profiler."""
        return None if self._profiler is None else self._profiler.start()

    def stop_profile(self) -> list[str] | None:
        """Write what was recorded; the names of the files. None when nothing was recorded."""
        return None if self._profiler is None else self._profiler.stop()

    def sleep(self, level: int) -> None:
        """Give the memory of weights and KV cache back; level 2 loses the weights, too. Errors change nothing."""
        self.worker.sleep(level)

    def release_kv_cache_memory(self) -> None:
        """Give the memory of the KV cache alone back."""
        self.worker.release_kv_cache_memory()

    def wake_up(self, tag: SleepTag) -> None:
        """Take the memory of one of them again, with the weights in it. Errors may be tried again."""
        self.worker.wake_up(tag)

    def reset(self) -> None:
        """Forget all requests, after a failed step."""
        self.worker.reset()

    def collective_rpc(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of every worker, such as one of ``worker_extension_cls``; returns one result each.

        Raises:
            InvalidRequest: when the worker has no such public method.
        """
        found = None if method.startswith("_") else getattr(self.worker, method, None)
        if not callable(found):
            raise InvalidRequest(f"the worker has no method {shown(method)}", field="method")
        return [found(*args, **kwargs)]

    def shutdown(self) -> None:
        """Release the model and the cache. May be called again."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()
            device = worker.hardware
            del worker  # and with it the model and the cache
            device.release_unused()
