"""The four values of ``logprobs_mode`` against plain arithmetic in double precision."""

import math
import random
from typing import Any, get_args

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.engine.sampling.requests import state
from vllm_engine import LLM, SamplingParams
from vllm_engine.sampling.sampler import LogprobsMode, Sampler, SamplingState

MODES = get_args(LogprobsMode)
VOCAB = 60
INF = math.inf


def adjusted(row: list[float], one: SamplingState, output: list[int]) -> list[float]:
    """What masks, bias and penalties make of a row."""
    params, request = one.params, one.request
    logits = list(row)
    if params.allowed_token_ids:
        logits = [value if token in params.allowed_token_ids else -INF for token, value in enumerate(logits)]
    text = request.prompt_token_ids + output
    for word in request.bad_words_token_ids:
        if len(word) == 1 or text[-len(word) + 1 :] == word[:-1]:
            logits[word[-1]] = -INF
    if len(output) < params.min_tokens:
        for token in request.stop_token_ids:
            logits[token] = -INF
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    for token in set(text):
        value, factor = logits[token], params.repetition_penalty
        value = value / factor if value > 0 else value * factor
        count = output.count(token)
        logits[token] = value - params.frequency_penalty * count - params.presence_penalty * (count > 0)
    return logits


def filtered(logits: list[float], params: SamplingParams) -> list[float]:
    """What temperature, min_p, top_k and top_p, in this order, leave of them."""
    if params.temperature == 0:
        return logits
    scaled = [value / params.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    largest = scaled[order[0]]
    kept = [token for token in order if math.exp(scaled[token] - largest) >= params.min_p]
    if params.top_k:
        kept = kept[: params.top_k]
    total = sum(math.exp(scaled[token] - largest) for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        if mass >= params.top_p * total and params.top_p < 1:
            break
        nucleus.append(token)
        mass += math.exp(scaled[token] - largest)
    return [value if token in nucleus else -INF for token, value in enumerate(scaled)]


def normalised(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = largest + math.log(sum(math.exp(value - largest) for value in logits))
    return [value - total for value in logits]


def expected(mode: str, row: list[float], one: SamplingState, output: list[int]) -> list[float]:
    values = filtered(adjusted(row, one, output), one.params) if mode.startswith("processed") else row
    return normalised(values) if mode.endswith("logprobs") else values


def random_case(pick: random.Random) -> tuple[SamplingState, list[int]]:
    def maybe(chance: float, make: Any, otherwise: Any) -> Any:
        return make() if pick.random() < chance else otherwise

    output = [pick.randrange(VOCAB) for _ in range(pick.randrange(8))]
    fields: dict[str, Any] = {
        "prompt": [pick.randrange(VOCAB) for _ in range(5)],
        "seed": pick.randrange(2**30),
        "temperature": pick.choice([0.0, 0.5, 1.0, 2.5]),
        "top_k": maybe(0.4, lambda: pick.choice([1, 4, 30, 59, 60, 500]), 0),
        "top_p": maybe(0.4, lambda: pick.uniform(0.05, 0.99), 1.0),
        "min_p": maybe(0.3, lambda: pick.uniform(0.001, 0.5), 0.0),
        "repetition_penalty": maybe(0.4, lambda: pick.choice([0.7, 1.4]), 1.0),
        "presence_penalty": maybe(0.3, lambda: pick.uniform(-2, 2), 0.0),
        "frequency_penalty": maybe(0.3, lambda: pick.uniform(-2, 2), 0.0),
        "min_tokens": maybe(0.4, lambda: 4, 0),
        "stop_token_ids": pick.sample(range(VOCAB), 3),
        "bad_words": maybe(0.4, lambda: [[7], [output[-1] if output else 3, 9]], []),
        "logit_bias": maybe(0.3, lambda: {pick.randrange(VOCAB): pick.uniform(-9, 9) for _ in range(3)}, None),
        "allowed_token_ids": maybe(0.3, lambda: [*pick.sample(range(VOCAB), 25), 11], None),
        "logprobs": maybe(0.8, lambda: pick.choice([0, 5, VOCAB]), None),
    }
    return state(output=output, **fields), output


@pytest.mark.parametrize("mode", MODES)
def test_what_is_returned_is_what_double_precision_gives(mode: str) -> None:
    pick = random.Random(3)
    sampler = Sampler(VOCAB, mode)
    for size in (1, 1, 1, 40, 40):
        cases = [random_case(pick) for _ in range(size)]
        logits = torch.randn(size, VOCAB, generator=torch.Generator().manual_seed(size)) * 3
        output = sampler.sample(logits.clone(), [one for one, _ in cases])
        assert output.errors == [None] * size
        for row, (one, tokens), token, found in zip(
            logits.tolist(), cases, output.token_ids, output.logprobs, strict=True
        ):
            if one.params.logprobs is None:
                assert found is None
                continue
            assert found is not None
            values = expected(mode, row, one, tokens)
            assert found.token_ids[0] == token
            assert found.rank == 1 + sum(value > values[token] for value in values)
            assert found.logprobs == pytest.approx([values[item] for item in found.token_ids], rel=1e-4, abs=1e-4)
            assert found.logprobs[1:] == pytest.approx(
                sorted(values, reverse=True)[: one.params.logprobs], rel=1e-4, abs=1e-4
            )


@pytest.mark.parametrize("mode", MODES)
def test_the_same_tokens_are_drawn_whatever_is_returned(mode: str) -> None:
    pick = random.Random(5)
    states = [random_case(pick)[0] for _ in range(30)]
    logits = torch.randn(30, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    assert Sampler(VOCAB, mode).sample(logits.clone(), states).token_ids == [
        Sampler(VOCAB).sample(logits[i : i + 1].clone(), [states[i]]).token_ids[0] for i in range(30)
    ]


def test_processed_values_are_minus_infinity_for_what_could_not_be_drawn() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    output = Sampler(4, "processed_logprobs").sample(logits, [state(temperature=0.5, top_k=2, logprobs=4)])
    (position,) = output.logprobs
    assert position is not None
    total = math.log(1 + math.exp(-2))
    assert position.token_ids[1:] == [0, 1, 2, 3]
    assert position.logprobs[1:] == pytest.approx([-total, -2 - total, -INF, -INF])


def test_a_greedy_request_beside_one_with_a_temperature_is_neither_scaled_nor_filtered() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2)
    greedy = state(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9, logprobs=4, logit_bias={3: 1.5})
    for states in ([greedy], [greedy, state(temperature=0.5, logprobs=4)]):
        output = Sampler(4, "processed_logits").sample(logits[: len(states)].clone(), states)
        position = output.logprobs[0]
        assert position is not None
        assert (position.token_ids, position.logprobs) == ([0, 0, 1, 3, 2], [3.0, 3.0, 2.0, 1.5, 1.0])


@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_fails_leaves_the_values_of_others_alone(mode: str) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[1, 5] = math.nan
    states = [state(top_k=5, logprobs=3), state(top_p=0.5, logprobs=3), state(top_p=0.5, logprobs=3)]
    output = Sampler(VOCAB, mode).sample(logits.clone(), states)
    assert output.errors == [None, "the logits hold NaN", None]
    for row in (0, 2):
        alone = Sampler(VOCAB, mode).sample(logits[row : row + 1].clone(), [states[row]])
        assert output.logprobs[row] == alone.logprobs[0]


@pytest.mark.parametrize("mode", MODES)
def test_prompt_logprobs_are_unprocessed_and_normalised_as_asked(mode: str) -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    for row, position in zip(
        logits.tolist(), Sampler(VOCAB, mode).prompt_logprobs(logits, [4, 9], 2).finish(), strict=True
    ):
        values = normalised(row) if mode.endswith("logprobs") else row
        assert position.logprobs == pytest.approx([values[token] for token in position.token_ids], abs=1e-5)
        assert position.logprobs[1:] == pytest.approx(sorted(values)[:-3:-1], abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("model")
    make_tiny_tokenizer(path)
    return path, make_tiny_model("llama", path)


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_returns_what_its_setting_says(folder: Any, mode: str) -> None:
    path, reference = folder
    prompt = [5, 9, 2, 33, 7]
    with torch.inference_mode():
        rows = reference(torch.tensor([prompt])).logits[0].double().tolist()
    params = SamplingParams(
        temperature=0.7, top_k=9, top_p=0.8, logit_bias={3: 2.0}, max_tokens=1, logprobs=-1, prompt_logprobs=1, seed=1
    )
    with LLM(str(path), dtype="float32", logprobs_mode=mode, max_logprobs=-1) as llm:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    (position,) = output.outputs[0].logprobs or ()
    one = state(prompt, temperature=0.7, top_k=9, top_p=0.8, logit_bias={3: 2.0})
    values = expected(mode, rows[-1], one, [])
    assert len(position) == len(values)
    assert [position[token].logprob for token in range(len(values))] == pytest.approx(values, abs=1e-3)
    for row, token, found in zip(rows, prompt[1:], (output.prompt_logprobs or ())[1:], strict=False):
        assert found is not None
        row = normalised(row) if mode.endswith("logprobs") else row
        assert found[token].logprob == pytest.approx(row[token], abs=1e-3)
