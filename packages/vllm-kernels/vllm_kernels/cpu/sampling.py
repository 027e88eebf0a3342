import torch

from vllm_kernels.cpu.inverse_cdf import block_max, first_maximum, pick, weight_sums
from vllm_kernels.cpu.top_tokens import top_tokens

# Rows are worked on in groups of about so many logits, so that intermediate copies stay in the processor's cache.
_LOGITS_AT_ONCE = 1 << 18
# How many of the most likely tokens are looked at first for top_p alone; more only where their mass falls short.
_FIRST_NUCLEUS = 128
_NUCLEUS_GROWTH = 16


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    token_ids: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    old = logits[rows, token_ids]
    new = torch.where(old > 0, old / repetition, old * repetition)
    new -= frequency * output_counts
    new -= presence * (output_counts > 0)
    logits[rows, token_ids] = new


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    logits[rows, token_ids] = logits[rows, token_ids] + bias


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    logits[rows, token_ids] = float("-inf")


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    kept = logits[rows, token_ids]
    logits.index_fill_(0, rows, float("-inf"))
    logits[rows, token_ids] = kept


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return first_maximum(logits, block_max(logits))[0]


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    result, highest = first_maximum(logits, block_max(logits))
    vocab_size = logits.shape[1]
    drawn = (temperature > 0) & (result >= 0)
    by_count = drawn & (top_k > 0) & (top_k < vocab_size)
    by_mass = drawn & ~by_count & (top_p < 1)
    plain = drawn & ~by_count & ~by_mass
    batch = _Rows(logits, highest, temperature, top_k, top_p, min_p, uniforms, result)
    if plain.any():
        for rows in plain.nonzero().flatten().split(max(1, _LOGITS_AT_ONCE // vocab_size)):
            batch.draw_plain(rows)
    if by_count.any():
        # Rows whose counts have the same power of two above them share one search.
        bits = torch.where(by_count, (top_k - 1).double().frexp().exponent, -1)
        for exponent in bits.unique().tolist():
            if exponent >= 0:
                batch.draw_top_k((bits == exponent).nonzero().flatten())
    if by_mass.any():
        for rows in by_mass.nonzero().flatten().split(max(1, _LOGITS_AT_ONCE // vocab_size)):
            batch.draw_top_p(rows)
    return result


class _Rows:
    """The arguments of ``sample``, and the three ways to draw some of its rows into ``result``."""

    def __init__(
        self,
        logits: torch.Tensor,
        highest: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniforms: torch.Tensor,
        result: torch.Tensor,
    ) -> None:
        self.logits, self.highest, self.result = logits, highest, result
        self.temperature = temperature.to(logits.dtype)
        self.top_k, self.top_p, self.min_p, self.uniforms = top_k, top_p.double(), min_p, uniforms

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """Probabilities relative to the most likely token, 0 where ``min_p`` drops: [len(rows), vocab_size] fp32."""
        return self._weigh(rows, self.logits.index_select(0, rows))

    def _weigh(self, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """In place on ``logits``, some columns of ``rows``."""
        weights = logits.sub_(self.highest[rows, None]).div_(self.temperature[rows, None]).exp_()
        min_p = self.min_p[rows, None].to(weights.dtype)
        if min_p.any():
            weights.masked_fill_(weights < min_p, 0)
        return weights

    def draw_plain(self, rows: torch.Tensor) -> None:
        """No order needed: the whole vocabulary in the order of ids."""
        self.result[rows] = pick(self.weights(rows), self.uniforms[rows])

    def draw_top_k(self, rows: torch.Tensor) -> None:
        """Only the most likely tokens are ever turned into probabilities."""
        top_k = self.top_k[rows]
        values, ids = top_tokens(self.logits.index_select(0, rows), int(top_k.max()))
        weights = self._weigh(rows, values)
        weights.masked_fill_(torch.arange(weights.shape[1]) >= top_k[:, None], 0)
        self._draw_leading(rows, weights, ids, weights.double().cumsum(1)[:, -1])

    def draw_top_p(self, rows: torch.Tensor) -> None:
        """The mass is of the whole vocabulary, but only the most likely tokens are put in order."""
        logits = self.logits.index_select(0, rows)
        total = weight_sums(self._weigh(rows, logits.clone()))
        count = _FIRST_NUCLEUS
        while len(rows):
            count = min(count, logits.shape[1])
            values, ids = top_tokens(logits, count)
            weights = self._weigh(rows, values)
            enough = weights.double().cumsum(1)[:, -1] >= self.top_p[rows] * total
            if count == logits.shape[1]:
                enough[:] = True
            self._draw_leading(rows[enough], weights[enough], ids[enough], total[enough])
            rows, logits, total = rows[~enough], logits[~enough], total[~enough]
            count *= _NUCLEUS_GROWTH

    def _draw_leading(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, total: torch.Tensor) -> None:
        """Cut the nucleus from tokens in descending order, and draw from it in the order of ids."""
        before = weights.double().cumsum(1) - weights
        outside = before >= (self.top_p[rows] * total)[:, None]
        outside &= self.top_p[rows, None] < 1
        outside[:, 0] = False
        weights = weights.masked_fill(outside, 0)
        ids, order = ids.sort(dim=1)
        chosen = pick(weights.gather(1, order), self.uniforms[rows])
        self.result[rows] = ids.gather(1, chosen[:, None])[:, 0]


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    own = logits.gather(1, token_ids[:, None])
    ids, values = token_ids[:, None], own
    if k:
        top_values, top_ids = top_tokens(logits, k)
        ids, values = torch.cat([ids, top_ids], dim=1), torch.cat([values, top_values], dim=1)
    ranks, normalisers = [], []
    for part, part_own in zip(_parts(logits), _parts(own, logits.shape[1]), strict=True):
        highest = block_max(part).amax(1, keepdim=True)
        normalisers.append(weight_sums((part - highest).exp_()).log() + highest[:, 0])
        ranks.append((part > part_own).sum(1) + 1)
    return ids, (values - torch.cat(normalisers)[:, None]).float(), torch.cat(ranks)


def _parts(rows: torch.Tensor, width: int | None = None) -> tuple[torch.Tensor, ...]:
    return rows.split(max(1, _LOGITS_AT_ONCE // (width or rows.shape[1])))
