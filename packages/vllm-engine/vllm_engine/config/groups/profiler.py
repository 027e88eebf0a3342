"""Profiling."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.types import NonNegative
from vllm_engine.config.option import key

_NO_PROFILER = "this version cannot be profiled from outside"


@dataclass(frozen=True, kw_only=True)
class ProfilerConfig:
    """What a profile records."""

    profiler: Literal["torch", "cuda"] | None = key(None, help="profiler to use", unsupported=_NO_PROFILER)
    torch_profiler_dir: str = key("", help="folder for torch's traces", unsupported=_NO_PROFILER)
    torch_profiler_with_stack: bool = key(True, help="record call stacks", unsupported=_NO_PROFILER)
    torch_profiler_with_flops: bool = key(False, help="count operations", unsupported=_NO_PROFILER)
    torch_profiler_use_gzip: bool = key(True, help="compress traces", unsupported=_NO_PROFILER)
    torch_profiler_dump_cuda_time_total: bool = key(True, help="print GPU time by kernel", unsupported=_NO_PROFILER)
    torch_profiler_record_shapes: bool = key(False, help="record shapes", unsupported=_NO_PROFILER)
    torch_profiler_with_memory: bool = key(False, help="record memory", unsupported=_NO_PROFILER)
    ignore_frontend: bool = key(False, help="profile the engine only", unsupported=_NO_PROFILER)
    delay_iterations: NonNegative = key(0, help="steps before a profile begins", unsupported=_NO_PROFILER)
    max_iterations: NonNegative = key(0, help="most steps of a profile; 0 is no limit", unsupported=_NO_PROFILER)
    warmup_iterations: NonNegative = key(0, help="steps of warming up", unsupported=_NO_PROFILER)
    active_iterations: NonNegative = key(5, help="steps recorded in a round", unsupported=_NO_PROFILER)
    wait_iterations: NonNegative = key(0, help="steps between rounds", unsupported=_NO_PROFILER)
