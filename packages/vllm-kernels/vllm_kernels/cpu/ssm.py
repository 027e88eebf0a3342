"""Torch's own operators."""

from vllm_kernels.eager.ssm import causal_conv1d, causal_conv1d_update, chunk_scan, selective_state_update

__all__ = ["causal_conv1d", "causal_conv1d_update", "chunk_scan", "selective_state_update"]
