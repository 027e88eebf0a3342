import numpy as np

from vllm_engine.sampling.uniforms import seed_streams, uniforms_at


def numbers(seed: int, count: int) -> np.ndarray:
    return uniforms_at(np.repeat(seed_streams([seed]), count), np.arange(count, dtype=np.uint64))


def test_the_mixing_is_splitmix64():
    # splitmix64.c with state 1234567 gives 6457827717110365317 first; a seed's stream starts at such a number.
    assert seed_streams([1234567]).tolist() == [6457827717110365317]


def test_numbers_are_a_function_of_seed_and_position():
    together = uniforms_at(seed_streams([7, 8, 9]), np.array([4, 0, 4], dtype=np.uint64))
    assert together.tolist() == [numbers(7, 5)[4], numbers(8, 1)[0], numbers(9, 5)[4]]


def test_numbers_are_uniform_in_zero_to_one():
    drawn = numbers(0, 100_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.bincount((drawn * 100).astype(int), minlength=100)
    # Chi-square with 99 degrees of freedom: 99 +- 14.
    assert 55 < ((counts - 1000) ** 2 / 1000).sum() < 155
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.015


def test_neighbouring_seeds_are_as_independent_as_neighbouring_positions():
    first = uniforms_at(seed_streams(list(range(50_000))), np.zeros(50_000, dtype=np.uint64))
    assert abs(first.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02


def test_streams_of_seeds_one_step_apart_share_no_numbers():
    gamma = 0x9E3779B97F4A7C15
    assert not set(numbers(5, 1000).tolist()) & set(numbers(5 + gamma, 1000).tolist())


def test_negative_and_large_seeds_are_taken_modulo_two_to_the_64():
    assert numbers(-1, 3).tolist() == numbers(2**64 - 1, 3).tolist()
    assert numbers(-(2**63), 3).tolist() != numbers(2**62, 3).tolist()
