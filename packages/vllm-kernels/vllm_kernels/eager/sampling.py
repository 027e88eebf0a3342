import numpy as np
import torch
from numpy.typing import NDArray

from vllm_kernels.eager.inverse_cdf import pick
from vllm_kernels.eager.nucleus import keep_nucleus
from vllm_kernels.eager.top_tokens import top_tokens

# Rows are worked on in groups of about so many logits, so that intermediate copies stay small and in cache.
_LOGITS_AT_ONCE = 1 << 20


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    token_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    place = torch.repeat_interleave(torch.arange(len(rows)), offsets.diff(), output_size=len(token_counts))
    index = rows[place], token_counts[:, 0].long()
    counts, factor = token_counts[:, 1], repetition[place]
    old = logits[index]
    new = torch.where(old > 0, old / factor, old * factor)
    new -= frequency[place] * counts
    new -= presence[place] * (counts > 0)
    logits[index] = new


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    logits[rows, token_ids] = logits[rows, token_ids] + bias


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    logits[rows, token_ids] = float("-inf")


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    kept = logits[rows, token_ids]
    logits.index_fill_(0, rows, float("-inf"))
    logits[rows, token_ids] = kept


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(_most_likely(logits))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    result = _most_likely(logits)
    draw = _Draw(logits, temperature, top_k, top_p, min_p, result)
    for rows in draw.whole_vocabulary:
        result[rows] = pick(draw.weights(rows), uniforms.numpy()[rows])
    for rows in draw.limited:
        _, ids, weights = draw.weights_of_most_likely(rows)
        ids, order = ids.sort(dim=1)
        chosen = pick(weights.gather(1, order), uniforms.numpy()[rows])
        result[rows] = ids.numpy()[np.arange(len(rows)), chosen]
    return torch.from_numpy(result)


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    result = logits.clone()
    draw = _Draw(logits, temperature, top_k, top_p, min_p, _most_likely(logits))
    for rows in draw.whole_vocabulary:
        scaled = draw.scaled(rows, logits[_index(rows, len(logits))])
        filtered = torch.from_numpy(draw.has_nucleus[rows])
        if filtered.any():
            # Without a filter, a weight of 0 is only too small for a float: its logit stays.
            scaled.masked_fill_((draw.weights(rows) == 0) & filtered[:, None], float("-inf"))
        result[torch.from_numpy(rows)] = scaled
    for rows in draw.limited:
        values, ids, weights = draw.weights_of_most_likely(rows)
        scaled = draw.scaled(rows, values)
        scaled.masked_fill_((weights == 0) & torch.from_numpy(draw.has_nucleus[rows])[:, None], float("-inf"))
        index = torch.from_numpy(rows)
        result[index] = float("-inf")
        result[index[:, None], ids] = scaled
    return result


class _Draw:
    """The arguments of ``sample``, and the weights that they leave to the tokens of some rows.

    ``whole_vocabulary`` and ``limited`` are the rows to draw, in groups to work on at once: those without and with a
    limit from ``top_k``. ``has_nucleus`` tells which rows are filtered by ``top_p`` or ``min_p``.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        most_likely: NDArray[np.int64],
    ) -> None:
        self._logits, self._temperature = logits, temperature.to(logits.dtype)
        self._top_k, self._top_p, self._min_p = top_k.numpy(), top_p.double().numpy(), min_p.double().numpy()
        self._most_likely = most_likely.copy()  # the caller's becomes the result
        self.has_nucleus: NDArray[np.bool_] = (self._top_p < 1) | (self._min_p > 0)
        drawn = (temperature.numpy() > 0) & (most_likely >= 0)
        limited = drawn & (self._top_k > 0) & (self._top_k < logits.shape[1])
        self.whole_vocabulary = _groups(np.flatnonzero(drawn & ~limited), logits.shape[1])
        self.limited: list[NDArray[np.int64]] = []
        if limited.any():
            # Rows whose counts have the same number of bits share one search.
            bits = np.frexp(np.where(limited, self._top_k - 1, 0).astype(np.float64))[1]
            self.limited = [np.flatnonzero(limited & (bits == bit)) for bit in np.unique(bits[limited])]

    def scaled(self, rows: NDArray[np.int64], logits: torch.Tensor) -> torch.Tensor:
        """Some columns of the rows, divided by their temperatures."""
        return logits / self._temperature[_index(rows, len(self._logits)), None]

    def weights(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Without ``top_k``: probabilities of the whole vocabulary, in the order of ids; 0 where filtered out."""
        # Torch computes each row of a softmax alone.
        weights = torch.softmax(self.scaled(rows, self._logits[_index(rows, len(self._logits))]), dim=1)
        for place in np.flatnonzero(self._min_p[rows] > 0):
            floor = np.float32(self._min_p[rows[place]]) * weights[place, self._most_likely[rows[place]]].numpy()
            torch.threshold_(weights[place], float(np.nextafter(floor, np.float32(-1))), 0.0)
        for place in np.flatnonzero(self._top_p[rows] < 1):
            keep_nucleus(weights[place], self._top_p[rows[place]])
        return weights

    def weights_of_most_likely(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """With ``top_k``: only the most likely tokens ever become probabilities.

        Returns:
            ``(values, ids, weights)``, each ``[rows, largest top_k]``, largest first: logits, -inf beyond a row's own
            ``top_k``; tokens; and probabilities, 0 where filtered out.
        """
        counts = self._top_k[rows]
        values, ids = top_tokens(self._logits[_index(rows, len(self._logits))], int(counts.max()))
        values.masked_fill_(torch.arange(values.shape[1]) >= torch.from_numpy(counts)[:, None], float("-inf"))
        weights = torch.softmax(self.scaled(rows, values), dim=1).numpy()
        weights[weights < self._min_p[rows, None].astype(np.float32) * weights[:, :1]] = 0
        running = np.cumsum(weights, axis=1, dtype=np.float64)
        top_p = self._top_p[rows, None]
        outside = (running - weights >= top_p * running[:, -1:]) & (top_p < 1)
        outside[:, 0] = False
        weights[outside] = 0
        return values, ids, torch.from_numpy(weights)


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows = len(logits)
    ids = torch.empty(num_rows, k + 1, dtype=torch.int64)
    logprobs, ranks = torch.empty(num_rows, k + 1), torch.empty(num_rows, dtype=torch.int64)
    ids[:, 0] = token_ids
    for rows in _groups(np.arange(num_rows), logits.shape[1]):
        index = slice(rows[0], rows[-1] + 1)
        part = logits[index]
        if k:
            ids[index, 1:] = top_tokens(part, k)[1]
        logprobs[index] = torch.log_softmax(part, dim=1).gather(1, ids[index])
        own = part.gather(1, ids[index, :1]).numpy()
        ranks[index] = torch.from_numpy(np.count_nonzero(part.numpy() > own, axis=1) + 1)
    return ids, logprobs, ranks


def _most_likely(logits: torch.Tensor) -> NDArray[np.int64]:
    """First largest column of each row, -1 where it is not finite: numpy's argmax stops at NaN, and is vectorised."""
    values = logits.numpy()
    columns: NDArray[np.int64] = values.argmax(axis=1)
    columns[~np.isfinite(values[np.arange(len(values)), columns])] = -1
    return columns


def _groups(rows: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """Rows in groups of about ``_LOGITS_AT_ONCE`` logits."""
    size = max(1, _LOGITS_AT_ONCE // width)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _index(rows: NDArray[np.int64], num_rows: int) -> torch.Tensor | slice:
    """All rows without a copy."""
    return slice(None) if len(rows) == num_rows else torch.from_numpy(rows)
