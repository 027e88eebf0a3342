"""What settings change, seen from outside: a tiny model run with the default and with another value.

``test_effect_of_<setting>`` is the proof for a setting; settings whose proof is a test elsewhere are in ``effects.py``.
"""

import asyncio
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine import LLM, AsyncLLM, EngineArgs, OutputKind, RequestOutput, SamplingParams
from vllm_engine.errors import ConfigError, InvalidRequest

PROMPTS = [list(range(5, 45)), list(range(60, 75)), list(range(80, 150))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)


@dataclass
class Run:
    """What a run of ``PROMPTS`` brought, and how many tokens of which requests each of its steps had."""

    llm: LLM
    outputs: list[RequestOutput]
    steps: list[dict[str, int]]

    @property
    def tokens(self) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in self.outputs]

    @property
    def logprobs(self) -> list[float]:
        (first, *_) = self.outputs
        return [entry.logprob for position in first.outputs[0].logprobs or () for entry in position.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "qwen3"
    make_tiny_model("qwen3", path)
    make_tiny_tokenizer(path)
    return path


@pytest.fixture
def run(folder: Path) -> Any:
    """``run(setting=value)`` generates with a setting; ``run()`` with the defaults."""

    def generate(**options: Any) -> Run:
        llm = LLM(**{"model": str(folder), "dtype": "float32", "use_tqdm_on_load": False, **options})
        core = llm._running_client.core
        steps: list[dict[str, int]] = []
        schedule = core.scheduler.schedule

        def recorded() -> Any:
            batch = schedule()
            steps.append(dict(batch.num_scheduled_tokens))
            return batch

        core.scheduler.schedule = recorded  # type: ignore[method-assign]
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        return Run(llm, outputs, steps)

    return generate


def test_effect_of_model(run: Any, tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    make_tiny_tokenizer(tmp_path)
    assert run().tokens != run(model=str(tmp_path)).tokens


def test_effect_of_dtype(run: Any) -> None:
    exact, rounded = run(dtype="float32"), run(dtype="bfloat16")
    assert exact.logprobs != rounded.logprobs
    # Up to the first of two tokens that are as good as each other, of which rounding has chosen the other.
    tokens = zip(exact.tokens[0], rounded.tokens[0], strict=True)
    same = 1 + len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], tokens)))
    assert rounded.logprobs[:same] == pytest.approx(exact.logprobs[:same], abs=0.5)
    assert run(dtype="float").logprobs == exact.logprobs


def test_effect_of_seed(run: Any) -> None:
    one, same, other = (run(load_format="dummy", seed=seed).tokens for seed in (1, 1, 2))
    assert one == same != other


def test_effect_of_load_format(run: Any) -> None:
    assert run(load_format="safetensors").tokens == run().tokens != run(load_format="dummy").tokens


def test_effect_of_max_model_len(run: Any) -> None:
    assert run().llm.ready.max_model_len == 512
    short = run(max_model_len=96).llm
    assert short.ready.max_model_len == 96
    with pytest.raises(InvalidRequest, match="96"):
        short.generate([list(range(97))], GREEDY, use_tqdm=False)


def test_effect_of_hf_overrides(run: Any) -> None:
    assert run(hf_overrides={"max_position_embeddings": 128}).llm.ready.max_model_len == 128
    assert run(hf_overrides={"rms_norm_eps": 0.5}).logprobs != run().logprobs


def test_effect_of_max_logprobs(run: Any) -> None:
    asking = SamplingParams(max_tokens=1, logprobs=21)
    for allowed in (21, -1):
        run(max_logprobs=allowed).llm.generate([PROMPTS[0]], asking, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="logprobs"):
        run().llm.generate([PROMPTS[0]], asking, use_tqdm=False)


def test_effect_of_skip_tokenizer_init(run: Any) -> None:
    llm = run(skip_tokenizer_init=True).llm
    with pytest.raises(InvalidRequest, match="tokenizer"):
        llm.generate(["text"], GREEDY, use_tqdm=False)


def test_effect_of_override_generation_config(run: Any) -> None:
    llm = run(override_generation_config={"temperature": 0.25, "max_new_tokens": 3}).llm
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.max_tokens) == (0.25, 3)


def test_effect_of_generation_config(run: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_k": 7}')
    assert run(generation_config=str(tmp_path)).llm.get_default_sampling_params().top_k == 7
    assert run(generation_config="vllm").llm.get_default_sampling_params().top_k == 0


def test_effect_of_use_tqdm_on_load(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    run(use_tqdm_on_load=False)
    assert "%|" not in terminal.getvalue()
    run(use_tqdm_on_load=True)
    assert "%|" in terminal.getvalue()


def test_effect_of_block_size(run: Any) -> None:
    assert (run().llm.ready.block_size, run(block_size=8).llm.ready.block_size) == (16, 8)


def test_effect_of_kv_cache_memory_bytes(run: Any) -> None:
    # 2 tensors x 3 layers x 2 heads x 16 channels x 4 bytes x 16 tokens in a block
    assert run(kv_cache_memory_bytes="1M").llm.ready.num_kv_blocks == 2**20 // (2 * 3 * 2 * 16 * 4 * 16)


def test_effect_of_num_gpu_blocks_override(run: Any) -> None:
    assert run(num_gpu_blocks_override=77).llm.ready.num_kv_blocks == 77


def test_effect_of_enable_prefix_caching(run: Any) -> None:
    for enabled, cached in ((None, 32), (True, 32), (False, 0)):
        llm = run(enable_prefix_caching=enabled).llm
        (again, *_) = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert again.num_cached_tokens == cached


def test_effect_of_max_num_batched_tokens(run: Any) -> None:
    free, tight = run(), run(max_num_batched_tokens=20, max_num_seqs=4)
    assert max(sum(step.values()) for step in free.steps) == sum(map(len, PROMPTS))
    assert max(sum(step.values()) for step in tight.steps) == 20
    assert free.tokens == tight.tokens


def test_effect_of_max_num_seqs(run: Any) -> None:
    free, tight = run(), run(max_num_seqs=2)
    assert (max(map(len, free.steps)), max(map(len, tight.steps))) == (3, 2)
    assert free.tokens == tight.tokens


def test_effect_of_enable_chunked_prefill(run: Any) -> None:
    for enabled, whole in ((True, False), (False, True)):
        limits = {"max_num_batched_tokens": 80, "max_model_len": 80, "max_num_seqs": 8}
        steps = run(enable_chunked_prefill=enabled, **limits).steps
        first_parts: dict[str, int] = {}
        for step in steps:
            for request, count in step.items():
                first_parts.setdefault(request, count)
        assert (sorted(first_parts.values()) == sorted(map(len, PROMPTS))) == whole


def test_effect_of_tokenizer(run: Any, folder: Path, tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer(tmp_path)
    tokenizer.add_special_tokens(["quick"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    own, other = run().llm, run(tokenizer=str(tmp_path)).llm
    assert own.get_tokenizer().encode("quick") != other.get_tokenizer().encode("quick")


def test_effect_of_kernel_config(run: Any) -> None:
    args = {"ir_op_priority": {"rms_norm": ["reference"]}}
    assert run(kernel_config=args).llm.config.kernel.ir_op_priority.rms_norm == ["reference"]
    assert run(kernel_config=args).tokens == run(ir_op_priority=args["ir_op_priority"]).tokens
    with pytest.raises(ConfigError, match="contradicts"):
        run(kernel_config=args, ir_op_priority={"rms_norm": ["cpu"]})


def test_effect_of_stream_interval(folder: Path) -> None:
    async def parts(interval: int) -> list[int]:
        args = EngineArgs(str(folder), dtype="float32", use_tqdm_on_load=False, stream_interval=interval)
        params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, output_kind=OutputKind.DELTA)
        async with AsyncLLM(args, multiprocess=False) as llm:
            return [len(one.outputs[0].token_ids) async for one in llm.generate(PROMPTS[0], params, "r")]

    one, three = asyncio.run(parts(1)), asyncio.run(parts(3))
    assert sum(one) == sum(three) == 8
    assert len(three) < len(one)
    assert max(three) >= 3
