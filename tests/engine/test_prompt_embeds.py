"""Prompts given as embeddings: what ``transformers`` makes of the same ``inputs_embeds``, whatever runs beside them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine import LLM, RequestOutput, SamplingParams
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineArgs
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.core.clients.inproc import InprocClient
from vllm_engine.core.kv_cache.layout import group_layers
from vllm_engine.errors import InvalidRequest
from vllm_engine.kv_layout import LayerKVSpec
from vllm_engine.messages import AddRequests, EngineRequest, PromptEmbeds
from vllm_engine.sampling.state import SamplingState

NUM_TOKENS = 24
MIN_GAP = 2e-4  # a smaller one between the two best logits could be decided by the order of float32 additions
FAMILIES = ["llama", "gemma2", "gemma3", "gpt2", "opt-post-norm"]
"""With and without a scaled embedding, learned positions, and a table narrower than the model."""
LENGTHS = [1, 16, 33, 61]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False)


@dataclass
class Truth:
    """Embeddings ``[n, width]`` and token prompts, and what ``transformers`` says of each."""

    path: Path
    prompts: list[Any]
    tokens: list[list[int]]


@torch.no_grad()
def reference(model: Any, embeds: torch.Tensor, **options: Any) -> tuple[list[int], float]:
    """Greedy tokens after ``inputs_embeds``, and the smallest gap between the two best logits on the way."""
    tokens = model.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    whole = torch.cat([embeds, model.get_input_embeddings()(tokens[0])])
    best = model(inputs_embeds=whole[None]).logits[0, len(embeds) - 1 : -1].float().topk(2).values
    return tokens[0].tolist(), float((best[:, 0] - best[:, 1]).min())


@pytest.fixture(scope="module", params=FAMILIES)
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    path = tmp_path_factory.mktemp(str(request.param))
    model = make_tiny_model(request.param, path)
    table = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(5)
    rng = random.Random(5)
    found = Truth(path, [], [])
    for length in LENGTHS:
        gap = 0.0
        while gap < MIN_GAP:
            ids = torch.tensor([rng.randrange(4, table.num_embeddings) for _ in range(length)])
            looked_up = table(ids).detach()
            # No row of the table: something between two of them, and some noise.
            noise = torch.randn(looked_up.shape, generator=generator) * looked_up.std() / 2
            embeds = (looked_up + looked_up.flip(0)) / 2 + noise
            tokens, gap = reference(model, embeds)
        found.prompts.append({"prompt_embeds": embeds})
        found.tokens.append(tokens)
    gap = 0.0
    while gap < MIN_GAP:
        token_ids = [rng.randrange(4, table.num_embeddings) for _ in range(40)]
        tokens, gap = reference(model, table(torch.tensor(token_ids)))
    found.prompts.insert(2, {"prompt_token_ids": token_ids})
    found.tokens.insert(2, tokens)
    return found


def make_llm(path: Path, **options: Any) -> LLM:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 16 * 2**20,
        "block_size": 8,
        "enable_prompt_embeds": True,
    }
    return LLM(str(path), **(settings | options))


def ask(llm: LLM, prompts: Any, params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(item.token_ids) for output in outputs for item in output.outputs]


def run_alone(truth: Truth) -> list[RequestOutput]:
    with make_llm(truth.path) as llm:
        return [ask(llm, prompt)[0] for prompt in truth.prompts]


def run_mixed(truth: Truth) -> list[RequestOutput]:
    with make_llm(truth.path) as llm:
        return ask(llm, truth.prompts)


def run_chunked(truth: Truth) -> list[RequestOutput]:
    with make_llm(truth.path, max_num_batched_tokens=11) as llm:
        return ask(llm, truth.prompts)


def run_preempted(truth: Truth) -> list[RequestOutput]:
    """A cache with room for the longest requests alone, and not for all."""
    decoder = load_decoder_config(truth.path)
    specs = [LayerKVSpec(1, 1, "float32", decoder.layer_window(index)) for index in range(decoder.num_layers)]
    num_blocks = 1 + 14 * len(group_layers(specs))
    with make_llm(truth.path, num_gpu_blocks_override=num_blocks, max_model_len=96, enable_prefix_caching=False) as llm:
        outputs = ask(llm, truth.prompts)
    given = [output for output, prompt in zip(outputs, truth.prompts, strict=True) if "prompt_embeds" in prompt]
    assert sum(output.metrics.num_preemptions for output in given) > 0, "the cache is not small enough"
    return outputs


@pytest.mark.parametrize("run", [run_alone, run_mixed, run_chunked, run_preempted])
def test_tokens_are_those_of_transformers(truth: Truth, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    assert tokens_of(run(truth)) == truth.tokens


def test_a_prompt_that_is_found_in_the_prefix_cache_after_a_preemption_needs_no_rows(truth: Truth) -> None:
    """The request begins again behind all of its rows, and nothing else is in its step."""
    prompt, tokens = truth.prompts[1], truth.tokens[1]
    decoder = load_decoder_config(truth.path)
    specs = [LayerKVSpec(1, 1, "float32", decoder.layer_window(index)) for index in range(decoder.num_layers)]
    num_blocks = 1 + 7 * len(group_layers(specs))  # one has 5 in the end
    with make_llm(truth.path, num_gpu_blocks_override=num_blocks, max_model_len=48) as llm:
        outputs = ask(llm, [prompt, {**prompt, "cache_salt": "x"}])
    assert [output.metrics.num_preemptions for output in outputs] == [0, 1]
    assert tokens_of(outputs) == [tokens] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    make_tiny_model("gemma3", path)
    make_tiny_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with make_llm(folder, skip_tokenizer_init=False) as llm:
        yield llm


def embeds_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    rows: torch.Tensor = model.get_input_embeddings()(torch.tensor(token_ids))
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_the_table_give_what_their_tokens_give(folder: Path, model: Any, dtype: str) -> None:
    token_ids = list(range(30, 80))
    with make_llm(folder, dtype=dtype, skip_tokenizer_init=False) as llm:
        runner = llm._client.core.executor.worker.runner  # type: ignore[union-attr]
        with torch.inference_mode():
            rows = runner.model.embedding(torch.tensor(token_ids, device=runner.device)).cpu().clone()
        params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, ignore_eos=True)
        by_tokens, by_rows = ask(llm, [{"prompt_token_ids": token_ids}, {"prompt_embeds": rows.clone()}], params)
    assert tokens_of([by_rows]) == tokens_of([by_tokens])
    assert by_rows.outputs[0].text == by_tokens.outputs[0].text
    assert by_rows.prompt is None
    assert by_rows.prompt_token_ids == [0] * 50
    if dtype == "float32":  # ... and so do those that transformers looks up
        assert torch.equal(rows, embeds_of(model, token_ids))


def test_other_types_and_arrays_mean_the_same(llm: LLM, model: Any) -> None:
    rows = embeds_of(model, list(range(40, 60))).detach()
    plain = ask(llm, {"prompt_embeds": rows})
    same = [
        rows.numpy(),
        rows.clone().requires_grad_() * 1,
        torch.cat([rows, rows], dim=1)[:, :48],
        rows.t().clone().t(),
    ]
    assert tokens_of(ask(llm, [{"prompt_embeds": item} for item in same])) == tokens_of(plain) * 4
    for dtype in (torch.float16, torch.bfloat16):
        rounded = rows.to(dtype)
        exact = ask(llm, {"prompt_embeds": rounded.float()})
        assert tokens_of(ask(llm, {"prompt_embeds": rounded})) == tokens_of(exact)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")
def test_placeholders_are_no_tokens_of_the_prompt(llm: LLM, model: Any) -> None:
    """Nothing is penalised for being in a prompt that has no tokens, and no bad word begins there."""
    rows = embeds_of(model, list(range(100, 120))).detach()
    expected, _ = reference(model, rows, repetition_penalty=1.7)
    params = GREEDY.replace(repetition_penalty=1.7)
    assert tokens_of(ask(llm, {"prompt_embeds": rows}, params)) == [expected]

    plain = tokens_of(ask(llm, {"prompt_embeds": rows}))[0]
    request = EngineRequest("r", [0] * 20, GREEDY, 24, 1, [], [], [[0, plain[0]]])

    def forbidden(embeds: PromptEmbeds | None) -> list[int]:
        state = SamplingState(msgspec.structs.replace(request, prompt_embeds=embeds), [0] * 20)
        return [] if state.bad_words is None else list(state.bad_words.forbidden())

    assert forbidden(None) == [plain[0]]
    assert forbidden(PromptEmbeds(b"", (20, 48), "float32")) == []


def test_blocks_are_shared_by_requests_with_the_same_embeddings_only(folder: Path, model: Any) -> None:
    rows = embeds_of(model, list(range(50, 90))).detach()
    other = rows.clone()
    other[-1] += 1
    with make_llm(folder) as llm:
        ask(llm, [{"prompt_token_ids": [0] * 40}, {"prompt_embeds": rows}])
        prompts = [{"prompt_embeds": rows}, {"prompt_embeds": other}, {"prompt_embeds": rows, "cache_salt": "x"}]
        again, different, salted = ask(llm, prompts)
        assert [item.num_cached_tokens for item in (again, different, salted)] == [32, 0, 0]
        assert tokens_of([again, different]) == [reference(model, rows)[0], reference(model, other)[0]]
        several = ask(llm, {"prompt_embeds": other}, GREEDY.replace(n=3))
        assert tokens_of(several) == tokens_of([different]) * 3


def test_truncation_keeps_the_last_rows(llm: LLM, model: Any) -> None:
    rows = embeds_of(model, list(range(50, 90))).detach()
    cut = ask(llm, {"prompt_embeds": rows}, GREEDY.replace(truncate_prompt_tokens=7))
    assert tokens_of(cut) == tokens_of(ask(llm, {"prompt_embeds": rows[-7:]}))
    assert len(cut[0].prompt_token_ids) == 7


def test_without_the_setting_they_are_refused(folder: Path) -> None:
    with make_llm(folder, enable_prompt_embeds=False) as llm:
        with pytest.raises(InvalidRequest, match="--enable-prompt-embeds") as caught:
            ask(llm, {"prompt_embeds": torch.zeros(3, 48)})
        assert caught.value.field == "prompt_embeds"
        assert len(tokens_of(ask(llm, {"prompt_token_ids": [5]}))[0]) == NUM_TOKENS


async def test_they_cross_to_the_engine_process_once_for_all_completions(folder: Path, model: Any) -> None:
    rows = embeds_of(model, list(range(50, 90))).detach()
    args = EngineArgs(
        str(folder), dtype="float32", max_model_len=128, kv_cache_memory_bytes=2**24, enable_prompt_embeds=True
    )
    async with AsyncLLM(args) as llm:
        outputs = [output async for output in llm.generate({"prompt_embeds": rows}, GREEDY.replace(n=3))]
        with pytest.raises(InvalidRequest, match="finite"):
            await anext(llm.generate({"prompt_embeds": rows * torch.inf}, GREEDY))
    assert tokens_of(outputs[-1:]) == [reference(model, rows)[0]] * 3


def test_a_message_holds_shared_embeddings_once() -> None:
    embeds = PromptEmbeds(b"\1" * 4000, (10, 100), "float32", "d")
    one = EngineRequest("a", [0] * 10, GREEDY, 24, 1, [], [], [], prompt_embeds=embeds)
    requests = [one, msgspec.structs.replace(one, request_id="b", seed=2)]
    sent = msgspec.msgpack.encode(AddRequests.packed(requests))
    assert len(sent) < 5000
    assert msgspec.msgpack.decode(sent, type=AddRequests).unpacked() == requests
    for alone in ([one], [EngineRequest("c", [5], GREEDY, 24, 1, [], [], [])] * 2):
        sent = msgspec.msgpack.encode(AddRequests.packed(alone))
        assert msgspec.msgpack.decode(sent, type=AddRequests).unpacked() == alone


def test_the_core_checks_once_more_what_it_would_index_with(folder: Path) -> None:
    args = EngineArgs(
        str(folder), dtype="float32", max_model_len=64, skip_tokenizer_init=True, enable_prompt_embeds=True
    )
    client = InprocClient(args.create_config(), folder)
    good = PromptEmbeds(bytes(10 * 48 * 4), (10, 48), "float32", "d")
    for change in (
        {"shape": (9, 48)},
        {"shape": (10, 47)},
        {"data": good.data[:-1]},
        {"dtype": "float16"},
        {"digest": ""},
    ):
        embeds = msgspec.structs.replace(good, **change)  # type: ignore[arg-type]
        client.add([EngineRequest("r", [0] * 10, GREEDY, 4, 1, [], [], [], prompt_embeds=embeds)])
        (update,) = client.step().updates
        assert update.finish_reason == "error" and "prompt_embeds" in (update.error or "")
    client.close()
