from vllm_kernels.eager.sampling import apply_penalties, apply_bias, mask_tokens, keep_tokens, greedy, sample, filter_logits, top_logprobs

__all__ = ["apply_penalties", "apply_bias", "mask_tokens", "keep_tokens", "greedy", "sample", "filter_logits", "top_logprobs"]
