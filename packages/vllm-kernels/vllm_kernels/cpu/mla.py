"""No native kernel: torch's own products serve it."""

from vllm_kernels.eager.mla import latent_attention, write_latent

__all__ = ["latent_attention", "write_latent"]
