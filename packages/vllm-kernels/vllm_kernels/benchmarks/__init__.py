"""Every GPU kernel over a table of shapes, beside what the device can do: ``python -m vllm_kernels.benchmarks``."""
