"""The operations as Triton kernels: one NVIDIA GPU, or, slowly, any machine with ``TRITON_INTERPRET=1``.

The variable must be set before a kernel's file is imported.
"""
