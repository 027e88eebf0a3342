"""From logits to tokens, beside torch's own ways; the vocabulary is Qwen 3's."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.sampling import apply_penalties, filter_logits, greedy, keep_tokens, sample, top_logprobs

_ROWS = slice(0, 4)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for."""
    rows, size = sizes(256, 4), sizes(151936, 9000)
    logits = 3 * torch.randn(rows, size, device=device)
    shape = f"{rows} x {size}"
    yield Case(
        "greedy",
        shape,
        lambda: greedy(logits),
        lambda result: result[_ROWS],
        lambda: logits[_ROWS].double().argmax(1).double(),
        0.0,
        logits.nbytes,
        peer=lambda: logits.argmax(1),
        peer_name="torch argmax",
    )
    ones, uniforms = torch.ones(rows, device=device), torch.rand(rows, device=device, dtype=torch.float64)
    heat, top_k, min_p = 0.8 * ones, torch.full((rows,), 50, device=device), 0 * ones.double()
    for name, k, p in (
        ("sample", 0 * top_k, 1.0),
        ("sample top_p", 0 * top_k, 0.9),
        ("sample top_k and top_p", top_k, 0.9),
    ):
        top_p = torch.full((rows,), p, device=device, dtype=torch.float64)
        own = (heat, k, top_p, min_p, uniforms)
        yield Case(
            name,
            shape,
            lambda own=own: sample(logits, *own),  # type: ignore[misc]
            lambda result: result[_ROWS],
            lambda own=own: _exact_tokens(logits[_ROWS], *(each[_ROWS] for each in own)),  # type: ignore[misc]
            0.0,
            logits.nbytes,
            peer=lambda: torch.multinomial(torch.softmax(logits / heat[:, None], dim=1), 1),
            peer_name="torch multinomial, no filter",
        )
    yield Case(
        "filter_logits",
        shape,
        lambda: filter_logits(logits, heat, top_k, top_p, min_p),
        lambda result: torch.softmax(result[_ROWS], dim=1),
        lambda: _exact_shares(logits[_ROWS], heat[_ROWS], top_k[_ROWS], top_p[_ROWS]),
        1e-5,
        2 * logits.nbytes,
    )
    token_ids = logits.argmax(1)
    yield Case(
        "top_logprobs",
        f"{shape}, 20 of each",
        lambda: top_logprobs(logits, token_ids, 20)[1],
        lambda result: result[_ROWS],
        lambda: _exact_logprobs(logits[_ROWS], token_ids[_ROWS]),
        1e-5,
        logits.nbytes,
        peer=lambda: torch.log_softmax(logits, dim=1).topk(20, dim=1).values,
        peer_name="torch log_softmax and topk",
    )
    yield _penalties(logits.clone(), sizes(1024, 50))
    yield _allowed(logits, sizes(1000, 30))


def _penalties(logits: torch.Tensor, seen: int) -> Case:
    """Each row has ``seen`` tokens already, once each. Logits are penalised once more with every call."""
    rows, size = logits.shape
    before = logits[_ROWS].clone()
    tokens = torch.stack([torch.randperm(size, device=logits.device)[:seen] for _ in range(rows)])
    token_counts = torch.stack([tokens, torch.ones_like(tokens)], dim=2).flatten(0, 1).int()
    offsets = torch.arange(0, rows * seen + 1, seen, device=logits.device)
    ones = torch.ones(rows, device=logits.device)
    own = torch.arange(rows, device=logits.device), offsets, token_counts, 1.1 * ones, 0.5 * ones, 0.25 * ones

    def run() -> torch.Tensor:
        apply_penalties(logits, *own)
        return logits

    def exact() -> torch.Tensor:
        found = before.double()
        wide = found.gather(1, tokens[_ROWS])
        factor = own[3][_ROWS, None].double()
        return found.scatter(1, tokens[_ROWS], torch.where(wide > 0, wide / factor, wide * factor) - 0.75)

    return Case(
        "apply_penalties",
        f"{rows} x {seen} of {size}",
        run,
        lambda result: result[_ROWS],
        exact,
        1e-6,
        token_counts.nbytes + 2 * rows * seen * logits.itemsize,
    )


def _allowed(logits: torch.Tensor, allowed: int) -> Case:
    rows, size = logits.shape
    tokens = torch.stack([torch.randperm(size, device=logits.device)[:allowed] for _ in range(rows)])
    every = torch.arange(rows, device=logits.device).repeat_interleave(allowed)

    def run() -> torch.Tensor:
        keep_tokens(logits, every, tokens.flatten())
        return logits

    def exact() -> torch.Tensor:
        found = torch.full_like(logits[_ROWS], -torch.inf, dtype=torch.float64)
        return torch.softmax(found.scatter(1, tokens[_ROWS], logits[_ROWS].double().gather(1, tokens[_ROWS])), dim=1)

    return Case(
        "keep_tokens",
        f"{rows} x {allowed} of {size}",
        run,
        lambda result: torch.softmax(result[_ROWS], dim=1),
        exact,
        1e-5,
        logits.nbytes + 2 * every.nbytes + 2 * every.numel() * logits.itemsize,  # all is written, a little is read
    )


def _exact_shares(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Probabilities of what the filters leave, in float64."""
    every = torch.softmax(logits.double() / temperature[:, None].double(), dim=1)
    ordered, ids = every.sort(dim=1, descending=True, stable=True)
    places = torch.arange(logits.shape[1], device=logits.device)
    ordered[(top_k[:, None] > 0) & (places >= top_k[:, None])] = 0.0
    ordered[ordered.cumsum(dim=1) - ordered >= top_p[:, None] * ordered.sum(dim=1, keepdim=True)] = 0.0
    return torch.zeros_like(every).scatter(1, ids, ordered / ordered.sum(dim=1, keepdim=True))


def _exact_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,  # none has one
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """The token at which the sum of probabilities, in the order of ids, passes the number that was drawn."""
    passed = _exact_shares(logits, temperature, top_k, top_p).cumsum(dim=1)
    return (passed <= uniforms[:, None] * passed[:, -1:]).sum(dim=1).double()


def _exact_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    every = torch.log_softmax(logits.double(), dim=1)
    return torch.cat([every.gather(1, token_ids[:, None]), every.topk(20, dim=1).values], dim=1)
