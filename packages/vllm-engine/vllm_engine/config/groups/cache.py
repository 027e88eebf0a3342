"""The KV cache."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from vllm_engine.config.groups.reasons import NO_KV_TIERS, NO_MAMBA
from vllm_engine.config.groups.types import NonNegativeNumber, Positive
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Size, format and reuse of the KV cache."""

    block_size: Annotated[int, Meta(ge=1, le=1024)] | None = option(None, help="tokens in one KV block; unset: 16")
    gpu_memory_utilization: Annotated[float, Meta(gt=0.0, le=1.0)] = option(
        0.92,
        help="share of the device's memory for this engine, KV cache included; on a CPU: of main memory that may be in "
        "use with it, by whomever",
        common=True,
    )
    kv_cache_memory_bytes: Positive | None = option(
        None,
        help="bytes for the KV cache; unset: a share of free memory, on a GPU what --gpu-memory-utilization leaves",
        metavar="BYTES",
        common=True,
    )
    kv_cache_dtype: Literal[
        "auto",
        "bfloat16",
        "float16",
        "fp8",
        "fp8_e4m3",
        "fp8_e5m2",
        "fp8_inc",
        "fp8_ds_mla",
        "fp8_per_token_head",
        "int8_per_token_head",
        "nvfp4",
        "turboquant_k8v4",
        "turboquant_4bit_nc",
        "turboquant_k3v4_nc",
        "turboquant_3bit_nc",
    ] = option(
        "auto",
        help="how cached keys and values are stored; auto: in the model's data type. fp8 (e4m3) and fp8_e5m2 keep them "
        "as they are, without a checkpoint's k_scale and v_scale; the per_token_head formats find a scale for each "
        "token and head, and are the more precise ones",
        unsupported="this version has no formats of fewer than 8 bits, nor those of other devices and models",
        possible=(
            "bfloat16",
            "float16",
            "fp8",
            "fp8_e4m3",
            "fp8_e5m2",
            "fp8_per_token_head",
            "int8_per_token_head",
        ),
    )
    num_gpu_blocks_override: Annotated[int, Meta(ge=2)] | None = option(None, help="number of KV blocks, on any device")
    enable_prefix_caching: bool | None = option(
        None, help="reuse the KV cache of equal prompt beginnings; unset: yes", common=True
    )
    prefix_caching_hash_algo: Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"] = option(
        "sha256",
        help="hash that names cached blocks; the cbor ones can be computed in any language. xxhash is faster, but does "
        "not resist made-up collisions: users who do not trust one another need sha256, or a secret cache_salt each",
    )
    calculate_kv_scales: bool = option(
        False,
        help="find the scales of an 8-bit KV cache while running",
        unsupported="fp8 is stored without scales; with kv_cache_dtype=fp8_per_token_head or int8_per_token_head they "
        "are always found",
    )
    kv_cache_dtype_skip_layers: list[str] = option(
        [],
        help="layers whose keys and values stay in the model's data type: numbers from 0, or sliding_window for all "
        "that have one",
    )
    kv_sharing_fast_prefill: bool = option(
        False,
        help="skip layers that share another's keys and values in a prefill",
        unsupported="no model of this version shares keys and values between layers",
    )
    mamba_cache_dtype: Literal["auto", "float16", "float32"] = option(
        "auto", help="data type of convolution states", unsupported=NO_MAMBA
    )
    mamba_ssm_cache_dtype: Literal["auto", "float16", "float32"] = option(
        "auto", help="data type of state-space states", unsupported=NO_MAMBA
    )
    mamba_block_size: Positive | None = option(None, help="tokens between stored states", unsupported=NO_MAMBA)
    mamba_cache_mode: Literal["none", "all", "align"] = option(
        "none", help="which states prefix caching keeps", unsupported=NO_MAMBA
    )
    kv_offloading_size: NonNegativeNumber | None = option(
        None, help="GiB of a second, slower tier of the KV cache", unsupported=NO_KV_TIERS
    )
    kv_offloading_backend: Literal["native", "lmcache"] = option(
        "native", help="what moves blocks to the second tier", unsupported=NO_KV_TIERS
    )

    @property
    def prefix_caching(self) -> bool:
        """Whether prefixes are reused, with the default filled in."""
        return self.enable_prefix_caching is not False
