"""The `vllm` command: serve, chat, complete, collect-env, and what other wheels bring."""

__version__ = "0.1.0"
