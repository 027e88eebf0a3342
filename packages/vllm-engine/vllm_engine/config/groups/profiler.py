"""Profiling."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.types import NonNegative
from vllm_engine.config.option import HONOURED, key


@dataclass(frozen=True, kw_only=True)
class ProfilerConfig:
    """What a profile records. It begins and ends with ``/start_profile`` and ``/stop_profile``, or those of ``LLM``."""

    profiler: Literal["torch", "cuda"] | None = key(
        None,
        help="profiler to use; without one there is no profiling",
        unsupported="profiles are torch's, which see a GPU's kernels, too",
        possible=("torch",),
    )
    torch_profiler_dir: str = key("", help="folder for torch's traces, for Perfetto and the like")
    torch_profiler_with_stack: bool = key(True, help="record call stacks")
    torch_profiler_with_flops: bool = key(False, help="count operations")
    torch_profiler_use_gzip: bool = key(True, help="compress traces")
    torch_profiler_dump_cuda_time_total: bool = key(
        True,
        help="log GPU time by kernel with each trace",
        no_effect="a CPU's trace has no GPU time",
        cuda=HONOURED,
    )
    torch_profiler_record_shapes: bool = key(False, help="record shapes")
    torch_profiler_with_memory: bool = key(False, help="record memory")
    ignore_frontend: bool = key(
        False, help="profile the engine only", no_effect="the engine's process is all that is ever profiled"
    )
    delay_iterations: NonNegative = key(0, help="steps before a profile begins")
    max_iterations: NonNegative = key(0, help="most steps of a profile; 0 is no limit")
    warmup_iterations: NonNegative = key(0, help="steps of warming up before each round")
    active_iterations: NonNegative = key(
        5, help="steps recorded in a round, where wait_iterations or warmup_iterations make rounds"
    )
    wait_iterations: NonNegative = key(0, help="steps between rounds")
