"""Executor, worker and model runner: from a scheduled batch to tokens."""
