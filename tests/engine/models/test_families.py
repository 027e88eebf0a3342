"""Every family computes the logits that transformers computes, in float32, from the same files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.models.paged import PagedRun
from tests.engine.models.tiny import FAMILIES, MAX_POSITIONS, VARIANTS, VOCAB_SIZE, make_tiny_model
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.layers.mlp import GatedMLP
from vllm_engine.loading.loader import load_model
from vllm_engine.models.causal_lm import CausalLM

PROMPT_LENGTHS = [1, 45, 7, 80]  # two are longer than every sliding window
NUM_DECODED = 4


def load(path: Path, *, max_model_len: int = MAX_POSITIONS, dtype: Any = "float32") -> CausalLM:
    model_config = ModelConfig(model=str(path), dtype=dtype, max_model_len=max_model_len)
    return load_model(path, load_decoder_config(path, {}), model_config, LoadConfig(use_tqdm_on_load=False), "cpu")


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def expected_logits(reference: Any, tokens: list[int]) -> torch.Tensor:
    return reference(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES + VARIANTS)
def test_logits_of_prompts_and_of_decoding_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    reference = make_tiny_model(family, tmp_path)
    # Length-dependent rotary frequencies of transformers stay those of the short context while prompts are short.
    max_len = 64 if family == "phi3-longrope" else MAX_POSITIONS
    lengths = [min(length, max_len - NUM_DECODED) for length in PROMPT_LENGTHS]
    prompts = random_prompts(lengths)
    continuation = random_prompts([NUM_DECODED] * len(prompts), seed=1)
    expected = [expected_logits(reference, a + b) for a, b in zip(prompts, continuation, strict=True)]

    run = PagedRun(load(tmp_path, max_model_len=max_len), len(prompts), max_len=max(lengths) + NUM_DECODED)
    logits = run.step(dict(enumerate(prompts)))
    for seq, length in enumerate(lengths):
        torch.testing.assert_close(logits[seq], expected[seq][:length], atol=1e-4, rtol=1e-4)
    for step in range(NUM_DECODED):
        logits = run.step({seq: [tokens[step]] for seq, tokens in enumerate(continuation)})
        for seq, length in enumerate(lengths):
            torch.testing.assert_close(logits[seq][0], expected[seq][length + step], atol=1e-4, rtol=1e-4)


def test_long_prompts_of_a_longrope_model_are_those_of_transformers_when_long_ones_are_served(tmp_path: Path) -> None:
    reference = make_tiny_model("phi3-longrope", tmp_path)
    (prompt,) = random_prompts([150])  # the original length is 64
    logits = PagedRun(load(tmp_path, max_model_len=200), 1, max_len=150).step({0: prompt})
    torch.testing.assert_close(logits[0], expected_logits(reference, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_cut_into_pieces_beside_others_gives_the_logits_of_the_whole(family: str, tmp_path: Path) -> None:
    make_tiny_model(family, tmp_path)
    model = load(tmp_path)
    first, second = random_prompts([61, 40])
    whole = PagedRun(model, 1, max_len=61).step({0: first})[0]
    run = PagedRun(model, 2, max_len=61, block_size=5)
    pieces = [
        run.step({0: first[:13]}),
        run.step({1: second[:30], 0: first[13:14]}),
        run.step({0: first[14:60], 1: second[30:]}),
        run.step({0: first[60:]}),
    ]
    torch.testing.assert_close(torch.cat([piece[0] for piece in pieces]), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_asked_for_last_tokens_keeps_the_others_for_what_follows(family: str, tmp_path: Path) -> None:
    make_tiny_model(family, tmp_path)
    model = load(tmp_path)
    prompts, following = random_prompts([61, 40, 1]), random_prompts([3, 1, 2], seed=1)
    truth, run = PagedRun(model, 3, max_len=64), PagedRun(model, 3, max_len=64)
    for tokens in (prompts, following):
        expected = truth.step(dict(enumerate(tokens)))
        found = run.step(dict(enumerate(tokens)), only_last=True)
        for seq, logits in expected.items():
            torch.testing.assert_close(found[seq][-1], logits[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2", "opt"}))
def test_in_the_last_layer_only_the_tokens_that_are_asked_for_pass_the_feed_forward_layer(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(family, tmp_path)
    model = load(tmp_path)
    rows: list[int] = []
    forward = GatedMLP.forward

    def counted(self: GatedMLP, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        rows.append(len(x))
        return forward(self, x, *rest, **options)

    monkeypatch.setattr(GatedMLP, "forward", counted)
    PagedRun(model, 2, max_len=40).step(dict(enumerate(random_prompts([40, 7]))), only_last=True)
    assert rows == [47] * (model.config.num_layers - 1) + [2]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_a_model_is_no_further_from_the_truth_than_transformers_is(family: str, tmp_path: Path) -> None:
    reference = make_tiny_model(family, tmp_path)
    (prompt,) = random_prompts([60])
    truth = expected_logits(reference, prompt)
    # Not reference.to(bfloat16), which would round the frequencies of rotary embeddings as well.
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    theirs = expected_logits(rounded, prompt).float()
    ours = PagedRun(load(tmp_path, dtype="bfloat16"), 1, max_len=60).step({0: prompt})[0]
    assert ours.dtype == torch.float32
    assert (ours - truth).pow(2).mean() <= 1.3 * (theirs - truth).pow(2).mean()


def test_kv_specs_give_each_layer_its_heads_window_and_bytes(tmp_path: Path) -> None:
    make_tiny_model("gemma3", tmp_path)
    specs = load(tmp_path, dtype="bfloat16").kv_specs(["bfloat16"] * 3 + ["fp8_e5m2"])
    assert [spec.sliding_window for spec in specs] == [19, 19, None, 19]
    assert {(spec.num_kv_heads, spec.head_dim) for spec in specs} == {(2, 16)}
    assert [spec.bytes_per_token for spec in specs] == [128, 128, 128, 64]
