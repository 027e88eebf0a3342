"""From logits to tokens.

Adjustments of single logits are given sparsely: entry ``i`` is logit ``logits[rows[i], token_ids[i]]``. Entries must
lie inside ``logits`` and no pair may come twice; rows without entries cost nothing. All change ``logits`` in place.
The native face raises ``ValueError`` for an entry outside ``logits``, Triton's leaves it out (a GPU is not waited for),
the others raise what torch does.
"""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    token_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Penalise tokens that a sequence has already, in place.

    Of each: logits above 0 are divided by ``repetition``, others multiplied by it (CTRL, arXiv:1909.05858); then
    ``frequency`` times its count is subtracted, and ``presence`` if the count is above 0.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32.
        rows: ``[num_penalised]``, int64: distinct rows.
        offsets: ``[num_penalised + 1]``, int64, ascending from 0 to ``num_entries``: those of ``rows[i]`` are entries
            ``offsets[i]`` to ``offsets[i + 1]``.
        token_counts: ``[num_entries, 2]``, int32: a token of prompt or output, each once in its row, and how often it
            is in the output; 0 for the prompt alone.
        repetition, presence, frequency: ``[num_penalised]``, fp32.

    Raises:
        ValueError: shapes or dtypes do not fit, or ``offsets`` on the CPU do not begin or end as they should.
    """
    _check_logits(logits)
    check_shape("rows", rows, (None,))
    check_dtype("rows", rows, torch.int64)
    check_shape("offsets", offsets, (rows.shape[0] + 1,))
    check_dtype("offsets", offsets, torch.int64)
    check_shape("token_counts", token_counts, (None, 2))
    check_dtype("token_counts", token_counts, torch.int32)
    if offsets.device.type == "cpu":  # a GPU would have to be waited for
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != token_counts.shape[0]:
            raise ValueError(f"offsets must go from 0 to {token_counts.shape[0]}, got {first} to {last}")
    for name, penalty in (("repetition", repetition), ("presence", presence), ("frequency", frequency)):
        check_shape(name, penalty, tuple(rows.shape))
        check_dtype(name, penalty, torch.float32)
    face_of("sampling", logits.device).apply_penalties(
        logits, rows, offsets, token_counts, repetition, presence, frequency
    )


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    """Add ``bias[i]`` to the logit of entry ``i``, in place.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32.
        rows, token_ids: ``[num_entries]``, int64.
        bias: ``[num_entries]``, fp32.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_entries(logits, rows, token_ids)
    check_shape("bias", bias, tuple(rows.shape))
    face_of("sampling", logits.device).apply_bias(logits, rows, token_ids, bias)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Make the tokens of the entries impossible, in place: their logits become -inf. Entries may repeat here.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32.
        rows, token_ids: ``[num_entries]``, int64.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_entries(logits, rows, token_ids)
    face_of("sampling", logits.device).mask_tokens(logits, rows, token_ids)


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Make all tokens of the entries' rows impossible but those of the entries, in place. Entries may repeat here.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32. Rows without entries stay as they are.
        rows, token_ids: ``[num_entries]``, int64.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_entries(logits, rows, token_ids)
    face_of("sampling", logits.device).keep_tokens(logits, rows, token_ids)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Most likely token of each row, the lowest id of equals.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32.

    Returns:
        ``[num_rows]``, int64; -1 for a row that holds NaN or +inf, or nothing but -inf.

    Raises:
        ValueError: shape or dtype does not fit.
    """
    _check_logits(logits)
    result: torch.Tensor = face_of("sampling", logits.device).greedy(logits)
    return result


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """Draw one token per row, as a function of the row and its uniform alone.

    Logits are divided by the temperature; then filters follow, each on what the one before has kept, renormalised:
    ``min_p`` drops tokens less likely than ``min_p`` times the most likely one (arXiv:2407.01082); ``top_k`` keeps the
    ``top_k`` most likely; ``top_p`` keeps the fewest most likely tokens whose probabilities add up to at least
    ``top_p`` (arXiv:1904.09751). Of equally likely tokens, lower ids count as more likely. One token is always kept.
    The draw is by inverse distribution function in the order of ids: the result is the lowest id such that the
    kept tokens up to it have more than ``uniform`` of the kept probability.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32; not changed.
        temperature: ``[num_rows]``, floating point, at least 0; 0 takes the most likely token, as ``greedy``.
        top_k: ``[num_rows]``, int64; 0 keeps all.
        top_p: ``[num_rows]``, floating point, in (0, 1]; 1 keeps all.
        min_p: ``[num_rows]``, floating point, in [0, 1]; 0 keeps all.
        uniforms: ``[num_rows]``, fp64, in [0, 1).

    Returns:
        ``[num_rows]``, int64; -1 for a row that holds NaN or +inf, or nothing but -inf.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_filters(logits, temperature, top_k, top_p, min_p)
    check_shape("uniforms", uniforms, (logits.shape[0],))
    check_dtype("uniforms", uniforms, torch.float64)
    result: torch.Tensor = face_of("sampling", logits.device).sample(logits, temperature, top_k, top_p, min_p, uniforms)
    return result


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """The logits whose softmax ``sample`` draws from: divided by the temperature, -inf where a filter drops the token.

    A row of temperature 0, or one that ``sample`` would answer with -1, comes back as it is.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32; not changed.
        temperature, top_k, top_p, min_p: ``[num_rows]`` each, as for ``sample``.

    Returns:
        ``[num_rows, vocab_size]``, fp32, new memory.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check_filters(logits, temperature, top_k, top_p, min_p)
    result: torch.Tensor = face_of("sampling", logits.device).filter_logits(logits, temperature, top_k, top_p, min_p)
    return result


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural log-probabilities of one given token per row, and of the ``k`` most likely ones.

    Args:
        logits: ``[num_rows, vocab_size]``, fp32; not changed.
        token_ids: ``[num_rows]``, int64, each in ``[0, vocab_size)``.
        k: how many, 0 to ``vocab_size``.

    Returns:
        ``(ids, logprobs, ranks)``. ``ids`` ``[num_rows, k + 1]`` int64: the given token, then the most likely ones,
        equals by id (the given one may come again). ``logprobs`` ``[num_rows, k + 1]`` fp32: of ``ids``.
        ``ranks`` ``[num_rows]`` int64: 1 + how many tokens are more likely than the given one.

    Raises:
        ValueError: shapes, dtypes or ``k`` do not fit.
    """
    _check_logits(logits)
    check_shape("token_ids", token_ids, (logits.shape[0],))
    check_dtype("token_ids", token_ids, torch.int64)
    if not 0 <= k <= logits.shape[1]:
        raise ValueError(f"k must be in [0, {logits.shape[1]}], got {k}")
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = face_of("sampling", logits.device).top_logprobs(
        logits, token_ids, k
    )
    return result


def _check_logits(logits: torch.Tensor) -> None:
    check_shape("logits", logits, (None, None))
    check_dtype("logits", logits, torch.float32)
    if logits.shape[1] == 0:
        raise ValueError("logits must have at least one column")


def _check_filters(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> None:
    _check_logits(logits)
    num_rows = logits.shape[0]
    for name, vector in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_shape(name, vector, (num_rows,))
        check_floating(name, vector)
    check_shape("top_k", top_k, (num_rows,))
    check_dtype("top_k", top_k, torch.int64)


def _check_entries(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    _check_logits(logits)
    check_shape("rows", rows, (None,))
    check_dtype("rows", rows, torch.int64)
    check_shape("token_ids", token_ids, tuple(rows.shape))
    check_dtype("token_ids", token_ids, torch.int64)
