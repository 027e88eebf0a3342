"""Random numbers of a workload: each purpose has its own, so that a change of one leaves the others as they were."""

import zlib

import numpy


def generator(seed: int, purpose: str) -> numpy.random.Generator:
    """The generator for ``purpose``, such as "prompts"; the same for the same ``seed`` (0 or more) on any machine."""
    return numpy.random.Generator(numpy.random.PCG64([seed, zlib.crc32(purpose.encode())]))
