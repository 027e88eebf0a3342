"""Random requests, and what came of each."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_engine import OutputKind, RequestOutput, SamplingParams
from vllm_engine.frontend.input_processor import PreparedRequest
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.outputs import CompletionOutput, Logprob, RequestMetrics

WORDS = ["the cat sat", " on", "hello hello world", "é", "😀", "你好", " the", "a", "mat and ", "\n", " ", "</s>"]
STOPS = ["a", "e", " ", "th", "the", "é", "at", "\n", "ca", "你", "😀", "aa", "\ufffd", "s t", "B", "ab", "<", "▁"]
BAD_WORDS = ["cat", "a", "é", "the mat", "the", "hello world", "s"]


def random_prompt(
    rng: random.Random, vocab_size: int, max_model_len: int, known: list[list[int]], tokenizer: Tokenizer
) -> list[int]:
    """Ids of a prompt; more often than not it begins as one in ``known`` does, to which it is added."""
    choice = rng.random()
    if known and choice < 0.55:
        before = rng.choice(known)
        length = rng.choice([0, 0, 1, 3, 9])
        ids = before[: rng.randrange(1, len(before) + 1)] + [rng.randrange(vocab_size) for _ in range(length)]
    elif choice < 0.75:
        ids = tokenizer.encode("".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8)))) or [0]
    else:
        length = rng.choice([1, 2, 3, rng.randrange(1, max_model_len), max_model_len - 1])
        ids = [rng.randrange(vocab_size) for _ in range(length)]
    known.append(ids[: max_model_len - 1])
    return known[-1]


def random_embeds(rng: random.Random, table: torch.nn.Module, vocab_size: int, length: int) -> torch.Tensor:
    """Rows ``[length, width]`` that are somewhere near those of a table."""
    rows: torch.Tensor = table(torch.tensor([rng.randrange(vocab_size) for _ in range(length)])).detach()
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(rng.randrange(2**40)))
    return (rows + noise * rows.std() / 2).contiguous()


def random_params(
    rng: random.Random, vocab_size: int, max_model_len: int, room: int, *, steers: bool
) -> SamplingParams:
    """Many fields in half of the requests, few in the others.

    ``room``: tokens that the output can have. ``steers``: a logits processor takes ``extra_args``.
    """
    density = rng.choice([1.0, 0.25])

    def maybe(chance: float, make: Any) -> Any:
        return make() if rng.random() < chance else None

    max_tokens = rng.choice([None, 1, 2, 5, 12, 30, 60, 10**6])
    detokenize = rng.random() < 0.9
    fields: dict[str, Any] = {
        "n": maybe(0.15 * density, lambda: rng.randrange(2, 5)),
        "temperature": rng.choice([0.0, 0.0, 0.0, 0.3, 0.7, 1.0, 1.8, 5.0]),
        "top_p": maybe(0.3 * density, lambda: rng.choice([0.05, 0.5, 0.9, 0.999])),
        "top_k": maybe(0.3 * density, lambda: rng.choice([1, 2, 5, 40, vocab_size - 1, vocab_size, vocab_size + 5])),
        "min_p": maybe(0.2 * density, lambda: rng.choice([0.001, 0.05, 0.5, 1.0])),
        "repetition_penalty": maybe(0.3 * density, lambda: rng.choice([0.7, 1.2, 2.0])),
        "presence_penalty": maybe(0.3 * density, lambda: rng.choice([-2.0, 2.0, rng.uniform(-1, 1)])),
        "frequency_penalty": maybe(0.3 * density, lambda: rng.choice([-2.0, 2.0, rng.uniform(-1, 1)])),
        "seed": maybe(0.7, lambda: rng.randrange(-(2**63), 2**63)),
        "stop": maybe(0.4 * density, lambda: rng.sample(STOPS, rng.randrange(1, 4))) if detokenize else None,
        "stop_token_ids": maybe(0.4 * density, lambda: rng.sample(range(vocab_size), rng.choice([1, 3, 12]))),
        "bad_words": maybe(0.3 * density, lambda: rng.sample(BAD_WORDS, 2)),
        "include_stop_str_in_output": maybe(0.4 * density, lambda: True),
        "ignore_eos": maybe(0.5, lambda: True),
        "min_tokens": maybe(0.4 * density, lambda: rng.randrange(min(room, max_tokens or room) + 1)),
        "logprobs": maybe(0.5 * density, lambda: rng.choice([0, 1, 2, 5, min(20, vocab_size), -1])),
        "prompt_logprobs": maybe(0.2 * density, lambda: rng.choice([0, 1, 3, min(20, vocab_size), -1])),
        "logit_bias": maybe(
            0.3 * density, lambda: {rng.randrange(vocab_size): rng.choice([-100, 100, 7.5, -3]) for _ in range(4)}
        ),
        "allowed_token_ids": maybe(
            0.15 * density, lambda: [rng.randrange(vocab_size) for _ in range(rng.choice([1, 2, 10, 60]))]
        ),
        "skip_special_tokens": maybe(0.3, lambda: False),
        "truncate_prompt_tokens": maybe(0.15 * density, lambda: rng.choice([-1, 1, rng.randrange(1, max_model_len)])),
        "extra_args": maybe(0.5, lambda: {"steer": rng.choice([1, 5, 30])}) if steers else None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    kind = rng.choice(list(OutputKind))
    return SamplingParams(**given, max_tokens=max_tokens, detokenize=detokenize, output_kind=kind)


class Fault(Exception):
    """The engine did what it should not."""


@dataclass
class Completion:
    """One of the completions of a request, put together from all outputs."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cumulative_logprob: float | None = None
    reason: str | None = None
    stop: int | str | None = None

    def take(self, part: CompletionOutput, *, is_delta: bool) -> None:
        """What an output says of it: the news, or all."""
        logprobs = part.logprobs or []
        if is_delta:
            if self.reason is not None and part.token_ids:
                raise Fault("tokens after the end")
            self.text += part.text
            self.ids += part.token_ids
            self.logprobs += logprobs
        else:
            if not part.text.startswith(self.text) or part.token_ids[: len(self.ids)] != self.ids:
                raise Fault("an output takes back what one before it told")
            self.text, self.ids, self.logprobs = part.text, list(part.token_ids), list(logprobs)
        self.cumulative_logprob, self.reason, self.stop = part.cumulative_logprob, part.finish_reason, part.stop_reason


@dataclass
class Entry:
    """A request of the workload."""

    prepared: PreparedRequest
    params: SamplingParams
    embeds: torch.Tensor | None = field(repr=False)
    salt: str | None
    before: list["Entry"] = field(repr=False)
    """Those that may have left blocks in the prefix cache when it came."""
    surely: list["Entry"] = field(repr=False)
    """Those among them that had ended."""
    completions: list[Completion] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    finished: bool = False
    aborted: bool = False

    def __post_init__(self) -> None:
        self.completions = [Completion() for _ in range(self.params.n)]

    @property
    def prompt(self) -> list[int]:
        """Ids of the prompt, placeholders for embeddings."""
        return self.prepared.prompt_token_ids

    @property
    def cache_key(self) -> tuple[str | None, bytes | None]:
        """Requests with another share no blocks with it."""
        return self.salt, None if self.embeds is None else self.embeds.numpy().tobytes()

    def take(self, output: RequestOutput) -> None:
        """The next output."""
        if self.finished:
            raise Fault("an output after the last one")
        is_delta = self.params.output_kind is OutputKind.DELTA
        if output.prompt_logprobs is not None or not is_delta:
            self.prompt_logprobs = output.prompt_logprobs
        for part in output.outputs:
            self.completions[part.index].take(part, is_delta=is_delta)
        self.finished, self.metrics, self.num_cached_tokens = output.finished, output.metrics, output.num_cached_tokens
