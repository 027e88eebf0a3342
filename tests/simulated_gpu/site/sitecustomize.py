"""Python runs this first, in every process that is started below one with the simulated GPU."""

from tests.simulated_gpu.activate import activate

activate()
