"""Saved results as pictures (PNG) and pages (HTML that needs nothing else); extra ``vllm-bench[plots]``."""
