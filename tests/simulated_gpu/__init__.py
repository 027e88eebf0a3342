"""A GPU that is simulated, so that what runs on a GPU can run without one, all of it but its speed.

``make simulated-gpu`` runs the engine's tests on it. Torch for the CPU gets a device ``cuda`` (``device.cpp``) with
memory of its own, and ``torch.cuda`` around it (``torch_cuda.py``); the driver shows it (``driver.py``), Triton's
interpreter computes on it (``kernels.py``), and processes that are started find it, too (``site``).

It is strict where a GPU is:

- An operator or a kernel that is given tensors of main memory raises. So does one that would wait for the GPU, where
  ``torch.cuda.set_sync_debug_mode`` forbids it, or while something is captured.
- A copy to main memory that nobody waits for has not arrived, and holds NaN. Main memory that is written to while a
  copy out of it is under way raises when that is waited for.
- A capture computes nothing. A replay computes with the addresses and numbers of that time, and raises where the memory
  there is nobody's any more. What a capture lets go of, later ones of the same pool overwrite.
- New memory holds NaN, and what is given back is filled with it. Memory is counted as torch counts it, and ends.

What it does not tell: whether a kernel compiles (``vllm_kernels.aot``), how long anything takes, what another order of
streams would do, and products of bfloat16 in Triton, which the interpreter computes wrongly.
"""
