"""Prompts as token ids, for engines that are asked without a text."""

import numpy


def random_ids(vocab_size: int, num_prompts: int, length: int, rng: numpy.random.Generator) -> list[list[int]]:
    """``num_prompts`` prompts of ``length`` ids below ``vocab_size``."""
    ids: list[list[int]] = rng.integers(vocab_size, size=(num_prompts, length)).tolist()
    return ids
