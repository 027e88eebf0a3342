"""The configuration groups, one file each. ``EngineConfig`` holds them all.

Keyword arguments, command-line flags, YAML keys, help, validation and documentation are made from these fields.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from vllm_engine.config.groups.attention import AttentionConfig
from vllm_engine.config.groups.cache import CacheConfig
from vllm_engine.config.groups.compilation import CompilationConfig
from vllm_engine.config.groups.device import DeviceConfig
from vllm_engine.config.groups.engine import AsyncEngineOptions, EngineOptions
from vllm_engine.config.groups.kernel import KernelConfig
from vllm_engine.config.groups.load import LoadConfig
from vllm_engine.config.groups.lora import LoRAConfig
from vllm_engine.config.groups.mamba import MambaConfig
from vllm_engine.config.groups.model import ModelConfig
from vllm_engine.config.groups.multimodal import MultiModalConfig
from vllm_engine.config.groups.observability import ObservabilityConfig
from vllm_engine.config.groups.offload import OffloadConfig
from vllm_engine.config.groups.parallel import ParallelConfig
from vllm_engine.config.groups.profiler import ProfilerConfig
from vllm_engine.config.groups.reasons import NO_KV_TIERS, NO_REASONING
from vllm_engine.config.groups.scheduler import SchedulerConfig
from vllm_engine.config.groups.structured_outputs import StructuredOutputsConfig
from vllm_engine.config.option import HONOURED, option


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """All settings of one engine: whole groups as objects, and what belongs to no group.

    Made by ``EngineArgs.create_config``. A field with a flag of its own, such as ``--attention-config``, takes a
    group's values as one JSON object.
    """

    GROUP: ClassVar[str] = "VllmConfig"

    engine: EngineOptions = EngineOptions()
    device: DeviceConfig = DeviceConfig()
    model: ModelConfig = ModelConfig()
    load: LoadConfig = LoadConfig()
    mamba: MambaConfig = MambaConfig()
    parallel: ParallelConfig = ParallelConfig()
    cache: CacheConfig = CacheConfig()
    offload: OffloadConfig = OffloadConfig()
    multimodal: MultiModalConfig = MultiModalConfig()
    lora: LoRAConfig = LoRAConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    async_engine: AsyncEngineOptions = AsyncEngineOptions()

    attention: AttentionConfig = option(
        AttentionConfig(), help="all settings of attention as one object", flag="--attention-config", short=("-ac",)
    )
    structured_outputs: StructuredOutputsConfig = option(
        StructuredOutputsConfig(),
        help="all settings of constrained output as one object",
        flag="--structured-outputs-config",
    )
    compilation: CompilationConfig = option(
        CompilationConfig(),
        help="all settings of compilation as one object, or its mode as a number",
        flag="--compilation-config",
        short=("-cc",),
        number_means="mode",
    )
    kernel: KernelConfig = option(KernelConfig(), help="all settings of kernels as one object", flag="--kernel-config")
    profiler: ProfilerConfig = option(ProfilerConfig(), help="what a profile records", flag="--profiler-config")
    speculative_config: dict[str, Any] | None = option(
        None,
        help="draft model or method that guesses tokens ahead",
        short=("-sc",),
        unsupported="this version does not guess tokens ahead",
    )
    kv_transfer_config: dict[str, Any] | None = option(
        None, help="exchange of KV blocks with other engines", unsupported=NO_KV_TIERS
    )
    kv_events_config: dict[str, Any] | None = option(
        None, help="where to tell which KV blocks are cached", unsupported="this version publishes no KV events"
    )
    ec_transfer_config: dict[str, Any] | None = option(
        None, help="exchange of media embeddings with other engines", unsupported=NO_KV_TIERS
    )
    reasoning_config: dict[str, Any] | None = option(
        None, help="tokens that begin and end reasoning, and its budget", unsupported=NO_REASONING
    )
    additional_config: dict[str, Any] = option(
        {}, help="anything that your own scheduler, worker or logits processor wants to be told"
    )
    optimization_level: Annotated[int, Meta(ge=0, le=3)] = option(
        2,
        help="how much start-up time to spend for speed on a GPU. 0: no CUDA graphs; 1: graphs of all but attention; "
        "2: of whole decode steps, too; 3: and torch.compile for what lies between kernels",
        short=("-O",),
        no_effect="nothing is compiled on a CPU, and graphs cost nothing at start, so all levels are the same",
        cuda=HONOURED,
    )
    performance_mode: Literal["balanced", "interactivity", "throughput"] = option(
        "balanced",
        help="what unset limits favour. balanced: 2048 tokens and 256 requests a step; throughput: 4096 and 512; "
        "interactivity: 512 and 256, so that steps are short. On a GPU of 70 GiB and more: 8192 and 512; 16384 and "
        "1024; 2048 and 256",
    )
    weight_transfer_config: dict[str, Any] | None = option(
        None, help="how new weights arrive while serving", unsupported="this version takes no new weights while serving"
    )

    @property
    def schedules_ahead(self) -> bool:
        """Whether a step is launched before the tokens of the one before it are known, with the default filled in."""
        asked = self.scheduler.async_scheduling
        return self.device.kind == "cuda" if asked is None else asked


__all__ = [
    "AsyncEngineOptions",
    "AttentionConfig",
    "CacheConfig",
    "CompilationConfig",
    "DeviceConfig",
    "EngineConfig",
    "EngineOptions",
    "KernelConfig",
    "LoRAConfig",
    "LoadConfig",
    "MambaConfig",
    "ModelConfig",
    "MultiModalConfig",
    "ObservabilityConfig",
    "OffloadConfig",
    "ParallelConfig",
    "ProfilerConfig",
    "SchedulerConfig",
    "StructuredOutputsConfig",
]
