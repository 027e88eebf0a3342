"""How a driver is asked to generate."""

from vllm_bench.workload.seeds import generator
from vllm_bench.workload.token_ids import random_ids

from .driver import Driver
from .shape import Shape
from .works import Work


def generate(driver: Driver, work: Work, shape: Shape, purpose: str, seed: int) -> float:
    """Seconds of the work with prompts of ``vllm bench``: the same for every driver of this purpose and seed.

    Raises:
        DriverError: the program refused, ended, or gave no answer in time.
    """
    # The last two entries of the vocabulary are special tokens.
    prompts = random_ids(shape.vocabulary - 2, work.requests, work.input_len, generator(seed, purpose))
    answer = driver.ask("generate", prompts=prompts, output_len=work.output_len)
    seconds: float = answer["seconds"]
    return seconds
