import math

import torch


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    token_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    for place, row in enumerate(rows.tolist()):
        factor = repetition[place].item()
        for token, count in token_counts[offsets[place] : offsets[place + 1]].tolist():
            logit = logits[row, token].item()
            logit = logit / factor if logit > 0 else logit * factor
            logit -= frequency[place].item() * count
            if count > 0:
                logit -= presence[place].item()
            logits[row, token] = logit


def apply_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    for row, token, added in zip(rows.tolist(), token_ids.tolist(), bias.tolist(), strict=True):
        logits[row, token] += added


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True):
        logits[row, token] = -math.inf


def keep_tokens(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    for row in set(rows.tolist()):
        kept = set(token_ids[rows == row].tolist())
        for token in range(logits.shape[1]):
            if token not in kept:
                logits[row, token] = -math.inf


def greedy(logits: torch.Tensor) -> torch.Tensor:
    result = []
    for row in logits.tolist():
        best = max(row)
        usable = all(logit < math.inf for logit in row) and best > -math.inf  # NaN is not below inf
        result.append(row.index(best) if usable else -1)
    return torch.tensor(result, dtype=torch.int64, device=logits.device)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    result = greedy(logits)
    for row, best in enumerate(result.tolist()):
        if best < 0 or temperature[row] == 0:
            continue
        probabilities = torch.softmax(logits[row].double() / temperature[row].double(), dim=0)
        nucleus = _kept(probabilities, int(top_k[row]), top_p[row].item(), min_p[row].item())
        gathered = sum(probabilities[token].item() for token in nucleus)
        target, passed = uniforms[row].item() * gathered, 0.0
        for token in sorted(nucleus):
            passed += probabilities[token].item()
            if probabilities[token] > 0:
                result[row] = token
                if passed > target:
                    break
    return result


def filter_logits(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    result = logits.clone()
    for row, best in enumerate(greedy(logits).tolist()):
        if best < 0 or temperature[row] == 0:
            continue
        scaled = logits[row].double() / temperature[row].double()
        kept = _kept(torch.softmax(scaled, dim=0), int(top_k[row]), top_p[row].item(), min_p[row].item())
        result[row] = -math.inf
        result[row, kept] = scaled[kept].float()
    return result


def _kept(probabilities: torch.Tensor, top_k: int, top_p: float, min_p: float) -> list[int]:
    """Tokens of a row that pass the filters, most likely first, equals by id: a filter drops an end of this order."""
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token].item(), token))
    kept = [token for token in order if probabilities[token] >= min_p * probabilities[order[0]]]
    if top_k > 0:
        kept = kept[:top_k]
    mass = sum(probabilities[token].item() for token in kept)
    nucleus: list[int] = []
    gathered = 0.0
    for token in kept:
        if nucleus and top_p < 1 and gathered >= top_p * mass:
            break
        nucleus.append(token)
        gathered += probabilities[token].item()
    return nucleus


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :k]
    ids = torch.cat([token_ids[:, None], order], dim=1)
    ranks = 1 + (logits > logits.gather(1, token_ids[:, None])).sum(dim=1)
    return ids, logprobs.gather(1, ids).float(), ranks
