"""The benchmarks of ``vllm bench``, one module each: ``SUMMARY``, ``add_arguments(parser)`` and ``run(options)``.

They import little at the top, for ``vllm bench --help`` loads them all.
"""
