"""Entries of 4 bits in the order in which tensor cores take them: eight neighbouring columns in a word of 32 bits.

A word has the even columns in its lower half and the odd ones in its upper half, so two neighbours are made to numbers
at once, in the halves of a register; and a thread multiplies eight neighbouring columns of a row (of 32, four threads
have each their eight). So words that are read by the threads which multiply them are where they belong as soon as they
come apart.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.quantized_weight import Quantization

LOWEST = 15
"""The bits of a scale that its zero is in: see ``with_zeros``."""


def are_words(scheme: Quantization) -> bool:
    """Whether entries are stored so: those of 4 bits whose activations stay as they are."""
    return scheme.bits == 4 and scheme.activation_bits is None


def words_of_row(in_features: int) -> int:
    """Of a row of ``in_features`` columns."""
    return -(-in_features // 8)


def to_words(q: torch.Tensor) -> torch.Tensor:
    """Entries uint8 ``[n, in_features]``, below 16 -> uint8 ``[n, 4 * words_of_row]``."""
    # [row, word, even or odd, of two, half of the word]
    by_bits = torch.nn.functional.pad(q, (0, -q.shape[1] % 8)).unflatten(1, (-1, 2, 2, 2))
    lower, upper = by_bits.unbind(3)
    words: torch.Tensor = (lower | upper << 4).permute(0, 1, 3, 2).flatten(1)
    return words


def from_words(words: torch.Tensor, in_features: int) -> torch.Tensor:
    """The entries, uint8 ``[n, in_features]``, of what ``to_words`` made of them."""
    by_bits = torch.stack((words & 15, words >> 4), dim=-1).unflatten(1, (-1, 2, 2))
    columns: torch.Tensor = by_bits.permute(0, 1, 3, 4, 2).flatten(1)
    return columns[:, :in_features]


def with_zeros(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Scales and zeros ``[..]`` in one table, int32: the bits of a scale in fp32, the lowest four of them the zero.

    So a turn of a product has one load for both. Scales are rounded to 20 bits; of those of groups 11 are kept anyhow.
    """
    bits = scales.float().contiguous().view(torch.int32)
    # Half of what is cut off, and a bit more where that makes the result even.
    rounded = bits + (LOWEST >> 1) + (bits >> 4 & 1)
    kept = torch.where(scales.isfinite(), rounded, bits) & ~LOWEST
    return kept | zeros


def apart(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales, fp32, and the zeros, uint8, of such a table."""
    return (table & ~LOWEST).view(torch.float32), (table & LOWEST).to(torch.uint8)


@triton.jit
def byte_of_rows(weight, BLOCK_N: tl.constexpr):
    """uint8 ``[BLOCK_N]``: a byte of the weight for each row, see ``without_effect``. To be loaded before the loop."""
    return tl.load(weight + tl.zeros([BLOCK_N], tl.int32))


@triton.jit
def without_effect(byte):
    """Zeros for ``words``: Triton should see that these are made of bytes, too.

    It lets a thread have as many neighbouring columns of a product's operands as the narrowest number that they are
    made of says: eight where that is a byte and numbers are joined, and otherwise not the same in each of its versions.
    Nothing remains of it in the machine code of a loop.
    """
    return byte.to(tl.uint32) >> 8


@triton.jit
def in_order(
    lower_0,
    upper_0,
    lower_1,
    upper_1,
    lower_2,
    upper_2,
    lower_3,
    upper_3,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Entries ``[BLOCK_N, BLOCK_K]`` of words ``[BLOCK_N, BLOCK_K / 8]`` that came apart: columns 0 (``lower_0``), 1
    (``upper_0``), and so on to 7.
    """
    first = tl.join(tl.join(lower_0, upper_0), tl.join(lower_2, upper_2))
    second = tl.join(tl.join(lower_1, upper_1), tl.join(lower_3, upper_3))
    by_bits = tl.join(first, second)  # [row, word, bit 0 of the column, bit 2, bit 1]
    return tl.reshape(tl.permute(by_bits, (0, 1, 3, 4, 2)), [BLOCK_N, BLOCK_K])
