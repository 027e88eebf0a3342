"""Profiles of the engine's steps by torch's profiler, written as traces into a folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_engine.config.device import DeviceKind
from vllm_engine.config.groups.profiler import ProfilerConfig
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

if TYPE_CHECKING:
    from torch.profiler import profile

logger = get_logger(__name__)

KERNELS_SHOWN = 50
"""Rows of the table of GPU time."""


class StepProfiler:
    """Records steps between ``start`` and ``stop``. All calls come from the thread that computes the steps."""

    def __init__(self, config: ProfilerConfig, device: DeviceKind) -> None:
        """Raises ``ConfigError`` for a folder that cannot be written."""
        self._config = config
        self._has_gpu = device == "cuda"
        self._folder = Path(config.torch_profiler_dir).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self._folder, os.W_OK | os.X_OK)
        except OSError:
            writable = False
        if not writable:
            raise ConfigError(
                f"profiler_config.torch_profiler_dir: {self._folder} is no folder that can be written",
                field="profiler_config.torch_profiler_dir",
            )
        self._profile: profile | None = None
        self._is_on = False
        self._to_skip = 0
        self._num_steps = 0
        self._files: list[str] = []

    def start(self) -> bool:
        """Begin with the next step, or ``delay_iterations`` later. False when a profile is under way already."""
        if self._is_on:
            return False
        self._is_on = True
        self._to_skip, self._num_steps, self._files = self._config.delay_iterations, 0, []
        if not self._to_skip:
            self._begin()
        return True

    def stop(self) -> list[str] | None:
        """Write what was recorded. The names of the files; None when no profile is under way."""
        if not self._is_on:
            return None
        self._end()
        self._is_on = False
        return self._files

    @contextmanager
    def step(self, num_requests: int, num_tokens: int) -> Iterator[None]:
        """Around each step, whether it is recorded or not."""
        if self._profile is None:
            yield
            if self._is_on and self._to_skip:
                self._to_skip -= 1
                if not self._to_skip:
                    self._begin()
            return
        from torch.profiler import record_function

        with record_function(f"step of {num_requests} requests with {num_tokens} tokens"):
            yield
        self._num_steps += 1
        if self._rounds:
            self._profile.step()
        if self._num_steps == self._config.max_iterations:
            self._end()

    @property
    def _rounds(self) -> bool:
        return bool(self._config.wait_iterations or self._config.warmup_iterations)

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule

        config = self._config
        rounds = None
        if self._rounds:
            rounds = schedule(
                wait=config.wait_iterations, warmup=config.warmup_iterations, active=config.active_iterations
            )
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._has_gpu else [])],
            schedule=rounds,
            on_trace_ready=self._write,
            record_shapes=config.torch_profiler_record_shapes,
            profile_memory=config.torch_profiler_with_memory,
            with_stack=config.torch_profiler_with_stack,
            with_flops=config.torch_profiler_with_flops,
        )
        self._profile.start()
        logger.info("a profile has begun")

    def _end(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
            logger.info("a profile of %d steps has ended", self._num_steps)

    def _write(self, profile: "profile") -> None:
        suffix = ".json.gz" if self._config.torch_profiler_use_gzip else ".json"
        name = f"{socket.gethostname()}_{os.getpid()}.{time.time_ns()}.pt.trace{suffix}"
        profile.export_chrome_trace(str(self._folder / name))
        self._files.append(name)
        logger.info("a trace was written: %s", self._folder / name)
        if self._has_gpu and self._config.torch_profiler_dump_cuda_time_total:
            try:
                table = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=KERNELS_SHOWN)
            except (RuntimeError, ValueError) as error:  # torch cannot always read the names that it recorded
                table = f"not known ({error})"
            logger.info("GPU time by kernel:\n%s", table)
