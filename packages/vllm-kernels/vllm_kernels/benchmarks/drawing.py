"""From logits to tokens, beside torch's own ways; the vocabulary is Qwen 3's."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.sampling import greedy, sample, top_logprobs
from vllm_kernels.reference import sampling as reference

_ROWS = slice(0, 4)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for."""
    rows, size = sizes(256, 4), sizes(151936, 700)
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
            lambda own=own: reference.sample(logits[_ROWS], *(each[_ROWS] for each in own)).double(),  # type: ignore[misc]
            0.0,
            logits.nbytes,
            peer=lambda: torch.multinomial(torch.softmax(logits / heat[:, None], dim=1), 1),
            peer_name="torch multinomial, no filter",
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


def _exact_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    every = torch.log_softmax(logits.double(), dim=1)
    return torch.cat([every.gather(1, token_ids[:, None]), every.topk(20, dim=1).values], dim=1)
