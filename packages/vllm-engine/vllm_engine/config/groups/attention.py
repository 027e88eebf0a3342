"""Attention."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.types import Positive
from vllm_engine.config.option import key, option

_OTHERS = "it chooses among kernels of others, and this version has its own"


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Which kernels compute attention, and how."""

    backend: str | None = option(
        None,
        help="kernels that compute attention: CPU_ATTN on a CPU, TRITON_ATTN on a GPU, TORCH_SDPA, REFERENCE; unset: "
        "the fast ones",
        flag="--attention-backend",
        metavar="BACKEND",
    )
    flash_attn_version: Literal[2, 3, 4] | None = key(None, help="version of FlashAttention", unsupported=_OTHERS)
    use_prefill_decode_attention: bool = key(False, help="separate kernels for prefill and decode", unsupported=_OTHERS)
    flash_attn_max_num_splits_for_cuda_graph: Positive = key(
        32, help="most parts of a sequence in a captured FlashAttention call", unsupported=_OTHERS
    )
    tq_max_kv_splits_for_cuda_graph: Positive = key(
        32, help="most parts of a sequence in a captured TurboQuant call", unsupported=_OTHERS
    )
    use_cudnn_prefill: bool = key(False, help="prefill by cuDNN", unsupported=_OTHERS)
    use_trtllm_ragged_deepseek_prefill: bool = key(
        False, help="prefill of DeepSeek by TensorRT-LLM", unsupported=_OTHERS
    )
    use_trtllm_attention: bool | None = key(
        None, help="attention by TensorRT-LLM", unsupported=_OTHERS, possible=(False,)
    )
    disable_flashinfer_prefill: bool | None = key(
        None, help="no prefill by FlashInfer", no_effect="this version does not use FlashInfer"
    )
    disable_flashinfer_q_quantization: bool = key(
        False, help="no quantised queries in FlashInfer", no_effect="this version does not use FlashInfer"
    )
    mla_prefill_backend: str | None = key(
        None, help="kernels for the prefill of latent attention", unsupported="this version has no latent attention"
    )
    use_prefill_query_quantization: bool = key(False, help="quantise the queries of a prefill", unsupported=_OTHERS)
    use_fp4_indexer_cache: bool = key(
        False, help="keep the sparse indexer's cache in 4 bits", unsupported="this version has no sparse attention"
    )
    use_non_causal: bool = key(
        False, help="let tokens attend to later ones", unsupported="this version runs causal decoders"
    )
