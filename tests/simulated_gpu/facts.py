"""What the driver says of the simulated GPU."""

import os

CUDA = "12.4"
NAME = "Simulated GPU"
CAPABILITY = (9, 0)
TOTAL = int(os.environ.get("SIMULATED_GPU_BYTES", 2 * 2**30))
BUS_ID = "00000000:00:00.0"
MULTIPROCESSORS = 132
SHARED_MEMORY = 227 * 1024
