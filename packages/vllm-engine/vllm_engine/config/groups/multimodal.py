"""Images, video and audio."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_engine.config.groups.reasons import NO_MEDIA
from vllm_engine.config.groups.types import NonNegativeNumber, Positive, Share
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class MultiModalConfig:
    """How models that see and hear are fed."""

    language_model_only: bool = option(
        False, help="run the language model only", no_effect="this version serves text models only"
    )
    limit_mm_per_prompt: dict[str, Any] = option(
        {},
        help="most images, videos and so on in a prompt",
        unsupported=NO_MEDIA,
        possible=({"image": 0}, {"image": 0, "video": 0}, {"image": 0, "video": 0, "audio": 0}),
    )
    enable_mm_embeds: bool = option(False, help="take media as embeddings", unsupported=NO_MEDIA)
    media_io_kwargs: dict[str, dict[str, Any]] = option({}, help="how media files are read", unsupported=NO_MEDIA)
    mm_processor_kwargs: dict[str, Any] | None = option(
        None, help="settings of the model's media processor", unsupported=NO_MEDIA
    )
    mm_processor_cache_gb: NonNegativeNumber = option(
        4.0, help="GiB for media that were processed before", unsupported=NO_MEDIA, possible=(0.0,)
    )
    mm_processor_cache_type: Literal["lru", "shm"] = option(
        "lru", help="where processed media are kept", unsupported=NO_MEDIA
    )
    mm_shm_cache_max_object_size_mb: Positive = option(
        128, help="MiB of the largest object in shared memory", unsupported=NO_MEDIA
    )
    mm_encoder_only: bool = option(False, help="run the media encoder only", unsupported=NO_MEDIA)
    mm_encoder_tp_mode: Literal["weights", "data"] = option(
        "weights", help="what of the media encoder is split over devices", unsupported=NO_MEDIA
    )
    mm_encoder_attn_backend: str | None = option(None, help="attention kernels of the encoder", unsupported=NO_MEDIA)
    mm_encoder_attn_dtype: Literal["fp8"] | None = option(
        None, help="data type of the encoder's attention", unsupported=NO_MEDIA
    )
    mm_encoder_fp8_scale_path: str | None = option(
        None, help="file with the scales of 8-bit encoder attention", unsupported=NO_MEDIA
    )
    mm_encoder_fp8_scale_save_path: str | None = option(
        None, help="file to write those scales to", unsupported=NO_MEDIA
    )
    mm_encoder_fp8_scale_save_margin: NonNegativeNumber = option(
        1.5, help="margin by which written scales are larger", unsupported=NO_MEDIA
    )
    interleave_mm_strings: bool = option(False, help="media anywhere in the text of a message", unsupported=NO_MEDIA)
    skip_mm_profiling: bool = option(
        False, help="no trial run of the media encoder at start", no_effect="there is no media encoder"
    )
    video_pruning_rate: Share | None = option(None, help="share of video tokens to drop", unsupported=NO_MEDIA)
    mm_tensor_ipc: Literal["direct_rpc", "torch_shm"] = option(
        "direct_rpc", help="how media tensors reach the engine", unsupported=NO_MEDIA
    )
