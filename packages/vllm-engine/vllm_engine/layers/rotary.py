"""Rotary position embedding (https://arxiv.org/abs/2104.09864): the table of cosines and sines.

The frequencies and angles are computed in float32, like those that the checkpoints were trained with: at position
100,000 a more exact product would differ from them in the third decimal.
"""

import math

import torch
from torch import Tensor, nn

from vllm_engine.config.rope import RopeConfig


class Rotary(nn.Module):
    """Rotations by the positions below ``max_len``: ``cos_sin``, float32 ``[max_len, rotary_dim]``, on ``device``."""

    def __init__(self, config: RopeConfig, max_len: int, device: torch.device) -> None:
        super().__init__()
        self._config = config
        table = cos_sin_table(config, max_len).to(device)
        self.register_buffer("cos_sin", table, persistent=False)
        self.cos_sin: Tensor

    def fit(self, max_len: int) -> None:
        """Make the table anew for ``max_len`` positions: some frequencies depend on it."""
        self.cos_sin = cos_sin_table(self._config, max_len).to(self.cos_sin.device)


def cos_sin_table(config: RopeConfig, max_len: int) -> Tensor:
    """Cosines, then sines, of every position below ``max_len``: float32 ``[max_len, rotary_dim]`` on the CPU."""
    inverse_frequencies, attention_factor = rope_frequencies(config, max_len)
    positions = torch.arange(max_len, dtype=torch.float32, device="cpu")
    angles = positions[:, None] * inverse_frequencies[None, :]  # [max_len, rotary_dim / 2]
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor


def rope_frequencies(config: RopeConfig, max_len: int) -> tuple[Tensor, float]:
    """Radians per position of each pair of channels, float32 ``[rotary_dim / 2]``, and the factor on cosine and sine.

    Two types depend on the length of the sequence in transformers, which recomputes them as it grows. Keys in a
    shared cache cannot be rotated again, so here ``max_len``, the longest sequence that is served, decides once:

    - ``dynamic``: the frequencies of a sequence of ``max_len``. They equal those of transformers for every
      sequence when ``max_len`` is at most ``max_position_embeddings``, and for those of ``max_len`` otherwise.
    - ``longrope``: ``long_factor`` if ``max_len`` exceeds ``original_max_position_embeddings``, else ``short_factor``.
      They equal those of transformers for sequences on the same side of that length.
    """
    if config.rope_type == "linear":
        return _plain(config, config.rope_theta) / config.factor, 1.0
    if config.rope_type == "dynamic":
        return _plain(config, _dynamic_theta(config, max_len)), 1.0
    if config.rope_type == "yarn":
        return _yarn(config)
    if config.rope_type == "llama3":
        return _llama3(config), 1.0
    if config.rope_type == "longrope":
        return _longrope(config, max_len)
    return _plain(config, config.rope_theta), 1.0


def _periods(config: RopeConfig, theta: float) -> Tensor:
    """``theta ** (2 i / rotary_dim)``: positions per radian."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device="cpu") / config.rotary_dim
    return torch.pow(theta, exponents)


def _plain(config: RopeConfig, theta: float) -> Tensor:
    return 1.0 / _periods(config, theta)


def _dynamic_theta(config: RopeConfig, max_len: int) -> float:
    """The NTK-aware base: it stretches the slowest pair by ``factor * length / original - (factor - 1)``."""
    ratio = max(max_len / config.max_position_embeddings, 1.0)
    stretch = config.factor * ratio - (config.factor - 1)
    return config.rope_theta * math.pow(stretch, config.rotary_dim / (config.rotary_dim - 2))


def _yarn(config: RopeConfig) -> tuple[Tensor, float]:
    """YaRN (https://arxiv.org/abs/2309.00071): fast pairs stay, slow ones are interpolated, with a ramp between."""
    half = config.rotary_dim // 2

    def pair_turning(turns: float) -> float:
        """Index of the pair that turns this often within the original context."""
        length = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(length) / (2 * math.log(config.rope_theta))

    low, high = pair_turning(config.beta_fast), pair_turning(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(half, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
    periods = _periods(config, config.rope_theta)
    keep = 1 - ramp
    frequencies = (1.0 / (config.factor * periods)) * (1 - keep) + (1.0 / periods) * keep
    return frequencies, _yarn_attention_factor(config)


def _yarn_attention_factor(config: RopeConfig) -> float:
    """Section 3.4 of the paper, or the ratio of two such terms when ``mscale`` and ``mscale_all_dim`` are given."""

    def term(weight: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return term(config.mscale) / term(config.mscale_all_dim)
    return term(1.0)


def _llama3(config: RopeConfig) -> Tensor:
    """Llama 3.1: pairs slower than the original context are slowed by ``factor``, fast ones stay, a ramp between."""
    frequencies = _plain(config, config.rope_theta)
    wavelengths = 2 * math.pi / frequencies
    turns = config.original_max_position_embeddings / wavelengths
    keep = ((turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)).clamp(0, 1)
    return (1 - keep) * frequencies / config.factor + keep * frequencies


def _longrope(config: RopeConfig, max_len: int) -> tuple[Tensor, float]:
    """LongRoPE (https://arxiv.org/abs/2402.13753): every pair has its own searched factor."""
    original = config.original_max_position_embeddings
    factors = config.long_factor if max_len > original else config.short_factor
    frequencies = 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * _periods(config, config.rope_theta))
    attention_factor = config.attention_factor
    if attention_factor is None:
        attention_factor = 1.0
        if config.factor > 1:
            attention_factor = math.sqrt(1 + math.log(config.factor) / math.log(original))
    return frequencies, attention_factor
