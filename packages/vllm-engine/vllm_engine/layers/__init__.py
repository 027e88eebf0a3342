"""Building blocks of models. A layer calls ``vllm_kernels`` and knows no model."""
