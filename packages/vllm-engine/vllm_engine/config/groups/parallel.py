"""Several devices and machines."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_EXPERTS, ONE_DEVICE
from vllm_engine.config.groups.types import NonNegative, Port, Positive
from vllm_engine.config.option import key, option


@dataclass(frozen=True, kw_only=True)
class EPLBConfig:
    """How experts are balanced over devices."""

    window_size: Positive = key(1000, help="steps whose load is looked at", unsupported=NO_EXPERTS)
    step_interval: Positive = key(3000, help="steps between two balancings", unsupported=NO_EXPERTS)
    num_redundant_experts: NonNegative = key(0, help="experts held twice", unsupported=NO_EXPERTS)
    log_balancedness: bool = key(False, help="log how balanced the load is", unsupported=NO_EXPERTS)
    log_balancedness_interval: Positive = key(1, help="steps between two such logs", unsupported=NO_EXPERTS)
    use_async: bool = key(False, help="balance beside the steps", unsupported=NO_EXPERTS)
    policy: Literal["default"] = key("default", help="how experts are placed", unsupported=NO_EXPERTS)
    communicator: Literal["torch_nccl", "torch_gloo", "torch_xccl", "nixl", "pynccl"] | None = key(
        None, help="what moves experts between devices", unsupported=NO_EXPERTS
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a model is spread over devices and machines."""

    distributed_executor_backend: Literal["uni", "mp", "ray", "external_launcher"] | None = option(
        None, help="what runs the workers", unsupported=ONE_DEVICE, possible=("uni",)
    )
    pipeline_parallel_size: Positive = option(
        1, help="devices that share the layers", short=("-pp",), unsupported=ONE_DEVICE
    )
    master_addr: str = option("127.0.0.1", help="address of the first machine", unsupported=ONE_DEVICE)
    master_port: Port = option(29501, help="port of the first machine", unsupported=ONE_DEVICE)
    nnodes: Positive = option(1, help="number of machines", short=("-n",), unsupported=ONE_DEVICE)
    node_rank: NonNegative = option(0, help="number of this machine", short=("-r",), unsupported=ONE_DEVICE)
    distributed_timeout_seconds: Positive | None = option(
        None, help="seconds to wait for other machines", unsupported=ONE_DEVICE
    )
    numa_bind: bool = option(
        False, help="bind each worker to the memory next to its device", unsupported="this version binds no memory"
    )
    numa_bind_nodes: list[int] | None = option(
        None, help="memory node of each worker", unsupported="this version binds no memory"
    )
    numa_bind_cpus: list[str] | None = option(
        None, help="cores of each worker, such as 0-3", unsupported="this version binds no workers to cores"
    )
    tensor_parallel_size: Positive = option(
        1, help="devices that share each layer", short=("-tp",), unsupported=ONE_DEVICE, common=True
    )
    decode_context_parallel_size: Positive = option(
        1, help="devices that share the KV cache of a sequence", short=("-dcp",), unsupported=ONE_DEVICE
    )
    dcp_comm_backend: Literal["ag_rs", "a2a"] = option(
        "ag_rs", help="how those exchange results", unsupported=ONE_DEVICE
    )
    dcp_kv_cache_interleave_size: Positive = option(
        1, help="tokens of one device before the next", unsupported=ONE_DEVICE
    )
    cp_kv_cache_interleave_size: Positive = option(
        1, help="tokens of one device before the next, in prefill and decode", unsupported=ONE_DEVICE
    )
    prefill_context_parallel_size: Positive = option(
        1, help="devices that share a long prompt", short=("-pcp",), unsupported=ONE_DEVICE
    )
    data_parallel_size: Positive = option(1, help="copies of the model", short=("-dp",), unsupported=ONE_DEVICE)
    data_parallel_rank: NonNegative | None = option(
        None, help="number of this copy behind an outside load balancer", short=("-dpn",), unsupported=ONE_DEVICE
    )
    data_parallel_start_rank: NonNegative | None = option(
        None, help="number of the first copy on this machine", short=("-dpr",), unsupported=ONE_DEVICE
    )
    data_parallel_size_local: NonNegative | None = option(
        None, help="copies on this machine", short=("-dpl",), unsupported=ONE_DEVICE, possible=(1,)
    )
    data_parallel_address: str | None = option(
        None, help="address of the first machine of all copies", short=("-dpa",), unsupported=ONE_DEVICE
    )
    data_parallel_rpc_port: Port | None = option(
        None, help="port between the copies", short=("-dpp",), unsupported=ONE_DEVICE
    )
    data_parallel_backend: Literal["mp", "ray"] = option(
        "mp", help="what runs the copies", short=("-dpb",), unsupported=ONE_DEVICE
    )
    data_parallel_hybrid_lb: bool = option(
        False, help="one load balancer for each machine", short=("-dph",), unsupported=ONE_DEVICE
    )
    data_parallel_external_lb: bool = option(
        False, help="a load balancer outside of this program", short=("-dpe",), unsupported=ONE_DEVICE
    )
    enable_expert_parallel: bool = option(
        False, help="spread experts over devices", short=("-ep",), unsupported=NO_EXPERTS
    )
    enable_ep_weight_filter: bool = option(False, help="read only the experts of this device", unsupported=NO_EXPERTS)
    all2all_backend: Literal[
        "allgather_reducescatter",
        "deepep_high_throughput",
        "deepep_low_latency",
        "flashinfer_all2allv",
        "flashinfer_nvlink_one_sided",
        "flashinfer_nvlink_two_sided",
        "mori",
        "naive",
        "nixl_ep",
        "pplx",
    ] = option("allgather_reducescatter", help="how tokens reach experts", unsupported=NO_EXPERTS)
    enable_dbo: bool = option(False, help="overlap two half batches", unsupported=ONE_DEVICE)
    ubatch_size: NonNegative = option(0, help="parts that a batch is cut into", unsupported=ONE_DEVICE)
    enable_elastic_ep: bool = option(False, help="change the number of expert devices", unsupported=NO_EXPERTS)
    dbo_decode_token_threshold: NonNegative = option(
        32, help="tokens from which a decode batch is halved", unsupported=ONE_DEVICE
    )
    dbo_prefill_token_threshold: NonNegative = option(
        512, help="tokens from which a prefill batch is halved", unsupported=ONE_DEVICE
    )
    disable_nccl_for_dp_synchronization: bool | None = option(
        None, help="let copies agree over the network, not NCCL", unsupported=ONE_DEVICE
    )
    enable_eplb: bool = option(False, help="balance experts over devices", unsupported=NO_EXPERTS)
    eplb_config: EPLBConfig = option(EPLBConfig(), help="how experts are balanced")
    expert_placement_strategy: Literal["linear", "round_robin"] = option(
        "linear", help="order of experts on devices", unsupported=NO_EXPERTS
    )
    max_parallel_loading_workers: Positive | None = option(
        None, help="most workers that load weights at once", unsupported=ONE_DEVICE, possible=(1,)
    )
    ray_workers_use_nsight: bool = option(
        False, help="profile Ray's workers with Nsight", unsupported="this version does not use Ray"
    )
    disable_custom_all_reduce: bool = option(
        False, help="sum over devices by NCCL only", no_effect="there is one device, so nothing is summed over devices"
    )
    worker_cls: str = option(
        "auto", help="worker class to use instead of ours, as an import path (module:Class)", metavar="CLASS"
    )
    worker_extension_cls: str = option(
        "", help="class whose methods the worker gets in addition, as an import path", metavar="CLASS"
    )
