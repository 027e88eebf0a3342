"""Logits processors of a user's own: what they change, what they are told, and that they hurt no one else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.engine.sampling.custom_processors import Break, Double, NeedsFactor, Steer
from tests.engine.sampling.requests import request, state
from vllm_engine import LLM, AsyncLLM, EngineArgs, SamplingParams
from vllm_engine.errors import ConfigError, InvalidRequest, RequestFailed
from vllm_engine.sampling.processors import LogitsProcessor
from vllm_engine.sampling.sampler import Sampler, SamplingState

ROOT = Path(__file__).parents[3]
MODULE = Steer.__module__
HOW = {
    "at once": "logits processor Break failed (ZeroDivisionError)",
    "raise": "logits processor Break failed (RuntimeError)",
    "exit": "logits processor Break failed (SystemExit)",
    "shape": "logits processor Break returned [1, ",
    "length": "logits processor Break returned [",
    "dtype": "of torch.float64, but logits are [",
    "type": "logits processor Break returned a list, not a tensor or None",
    "nan": "the logits hold NaN",
    "infinity": "made a logit larger than 1e+30",
    "huge": "made a logit larger than 1e+30",
    "nothing": "no token is possible: all are masked",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_tiny_tokenizer(path)
    make_tiny_model("qwen3", path)
    return path


def options(folder: Path, *processors: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "dtype": "float32",
        "max_model_len": 128,
        "block_size": 8,
        "logits_processors": list(processors) or [f"{MODULE}:Steer", f"{MODULE}.Break"],
        **more,
    }


def tokens(llm: LLM, prompts: list[list[int]], params: Any) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


# ---- the sampler ----


def with_processors(processors: list[LogitsProcessor], output: list[int], **fields: Any) -> SamplingState:
    asked = request(**fields)
    return SamplingState(asked, asked.prompt_token_ids + output, processors)


def instances(*kinds: type[LogitsProcessor]) -> list[LogitsProcessor]:
    config = EngineArgs("demo").create_config()
    return [kind(config) for kind in kinds]


def test_a_processor_comes_after_bias_and_penalties_and_before_temperature_and_filters() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, -1.0]])
    one = with_processors(
        instances(Double),
        [2],
        temperature=0.5,
        top_k=3,
        logit_bias={0: 4.0},
        frequency_penalty=1.0,
        repetition_penalty=2.0,
        bad_words=[[1]],
        prompt=[3],
        logprobs=4,
    )
    (position,) = Sampler(4, "processed_logits").sample(logits.clone(), [one]).logprobs
    assert position is not None
    found = dict(zip(position.token_ids, position.logprobs, strict=True))
    # Bias 1 + 4; a bad word; 3 / 2 - 1 for the output; -1 * 2 for the prompt. Then doubled, then divided by 0.5.
    assert found == {0: 20.0, 1: -torch.inf, 2: 2.0, 3: -8.0}
    (raw,) = Sampler(4).sample(logits.clone(), [one]).logprobs
    assert raw is not None
    assert raw.logprobs[1:] == pytest.approx(sorted(logits.log_softmax(1)[0].tolist(), reverse=True))


def test_processors_follow_one_another_in_the_order_of_the_setting() -> None:
    logits = torch.zeros(1, 8)
    for kinds, expected in (([Steer, Double], 6.0), ([Double, Steer], 3.0)):
        row = logits.clone()
        Sampler(8).sample(row, [with_processors(instances(*kinds), [], extra_args={"steer": 3.0})])
        assert sorted(row[0].tolist())[-1] == expected


def test_a_row_without_processors_beside_one_with_them_is_untouched() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    row = logits.clone()
    states = [state(temperature=0.0), with_processors(instances(Double), [], temperature=0.0), state(temperature=0.0)]
    assert Sampler(20).sample(row, states).token_ids == logits.argmax(1).tolist()
    assert torch.equal(row[[0, 2]], logits[[0, 2]])
    assert torch.equal(row[1], logits[1] * 2)


@pytest.mark.parametrize("how", HOW)
def test_a_failing_processor_fails_its_own_row_alone(how: str) -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    states = [
        with_processors(instances(Steer, Break), [4, 5], seed=i, logprobs=2, extra_args={"steer": 2.0, **broken})
        for i, broken in enumerate(({}, {"break": how}, {}))
    ]
    output = Sampler(20).sample(logits.clone(), states)
    assert HOW[how] in (output.errors[1] or "")
    assert (output.token_ids[1], output.logprobs[1]) == (-1, None)
    for row in (0, 2):
        alone = Sampler(20).sample(logits[row : row + 1].clone(), [states[row]])
        assert (output.errors[row], output.token_ids[row]) == (None, alone.token_ids[0])
        assert output.logprobs[row] == alone.logprobs[0]


# ---- in an engine ----


def test_a_processor_steers_the_requests_that_ask_for_it(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    steered = params.replace(extra_args={"steer": 500.0})
    prompts = [[5, 6, 7], [8, 9]]
    with LLM(str(folder), dtype="float32") as llm:
        plain = tokens(llm, prompts, params)
    with LLM(**options(folder)) as llm:
        assert tokens(llm, prompts, params) == plain
        vocab_size = llm.ready.vocab_size
        found = tokens(llm, prompts, [steered, params])
    expected: list[int] = []
    for _ in range(6):
        expected.append((18 + 31 * len(expected) + 7 * sum(expected)) % vocab_size)
    assert found == [expected, plain[1]]


def test_results_are_those_of_each_request_alone_whatever_the_batch_and_preemption(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    prompts = [[3 + i, 40 + i, 7] * (1 + i % 4) for i in range(12)]
    params = [
        SamplingParams(
            temperature=(i % 3) / 2, seed=i, max_tokens=30, ignore_eos=True, extra_args={"steer": float(i % 5)}
        )
        for i in range(12)
    ]
    with LLM(**options(folder)) as llm:
        alone = [tokens(llm, [prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]
    with LLM(**options(folder, num_gpu_blocks_override=24, max_num_batched_tokens=16, max_num_seqs=12)) as llm:
        assert tokens(llm, prompts, params) == alone
        assert llm._running_client.core.scheduler.stats().num_preemptions > 0


def test_only_the_request_with_a_failing_processor_ends_with_an_error(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    work = [params, *(params.replace(extra_args={"break": how}) for how in HOW), params]
    prompt: Any = {"prompt_token_ids": [5, 6, 7]}
    with LLM(**options(folder)) as llm:
        (expected,) = tokens(llm, [[5, 6, 7]], params)
        outputs = llm.generate([prompt] * len(work), work, use_tqdm=False)
        for output in (outputs[0], outputs[-1]):
            assert list(output.outputs[0].token_ids) == expected
        for how, output in zip(HOW, outputs[1:-1], strict=True):
            (completion,) = output.outputs
            assert completion.finish_reason == "error"
            assert HOW[how] in (completion.error or "")
            assert list(completion.token_ids) == expected[: 0 if how == "at once" else 2]
        assert tokens(llm, [[5, 6, 7]], params) == [expected]


def test_a_request_that_a_processor_refuses_is_told_why(folder: Path) -> None:
    with LLM(**options(folder)) as llm:
        for value, field in (("x", "extra_args"), (-1, "extra_args.steer")):
            with pytest.raises(InvalidRequest, match=r"extra_args\.steer must be") as caught:
                tokens(llm, [[5]], SamplingParams(extra_args={"steer": value}))
            assert caught.value.field == field
        with pytest.raises(RequestFailed, match="logits processor Steer failed to check the request"):
            tokens(llm, [[5]], SamplingParams(extra_args={"steer": 5000}))


def test_extra_args_are_refused_where_nothing_could_read_them(folder: Path) -> None:
    with LLM(str(folder), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match="extra_args is for logits processors"):
            tokens(llm, [[5]], SamplingParams(extra_args={"steer": 1}))
        assert tokens(llm, [[5]], SamplingParams(extra_args={}, max_tokens=1, seed=0))


def test_a_processor_reads_the_additional_configuration(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0)
    with LLM(
        **options(folder, Double, NeedsFactor, logprobs_mode="processed_logits", additional_config={"factor": -0.5})
    ) as llm:
        (output,) = llm.generate([{"prompt_token_ids": [5]}], params, use_tqdm=False)
    with LLM(str(folder), dtype="float32", max_model_len=128, logprobs_mode="raw_logits") as llm:
        (plain,) = llm.generate([{"prompt_token_ids": [5]}], params, use_tqdm=False)
    # -0.5 twice: a quarter of each logit, so the same token.
    (found,), (before,) = output.outputs[0].logprobs or (), plain.outputs[0].logprobs or ()
    assert {token: entry.logprob * 4 for token, entry in found.items()} == pytest.approx(
        {token: entry.logprob for token, entry in before.items()}
    )


async def test_an_engine_process_imports_the_classes_by_their_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, extra_args={"steer": 6.0})
    with LLM(**options(folder)) as llm:
        expected = tokens(llm, [[5, 6, 7]], params)[0]
    async with AsyncLLM(EngineArgs(**options(folder, Steer, Break))) as llm:
        last = None
        async for output in llm.generate({"prompt_token_ids": [5, 6, 7]}, params):
            last = output
        assert last is not None
        assert list(last.outputs[0].token_ids) == expected
        with pytest.raises(RequestFailed, match=r"Break failed \(RuntimeError\)"):
            async for _ in llm.generate({"prompt_token_ids": [5]}, params.replace(extra_args={"break": "raise"})):
                pass
        llm.check_health()


# ---- the setting ----


def in_a_function() -> type[LogitsProcessor]:
    class Local(Double):
        pass

    return Local


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere:Steer", "no module nowhere"),
        (f"{MODULE}:Missing", f"module {MODULE} has no Missing"),
        (f"{MODULE}:EngineConfig", "must be a class derived from vllm_engine.sampling.processors.LogitsProcessor"),
        (LogitsProcessor, "must define new_req_logits_processor"),
        (dict, "must be a class derived from"),
        (in_a_function(), "must be at the top level of a module"),
        (len, "must be a list"),
        ([Steer, 5], "must be a list"),
    ],
    ids=str,
)
@pytest.mark.parametrize("face", [LLM, lambda **given: AsyncLLM(EngineArgs(**given))], ids=["LLM", "AsyncLLM"])
def test_a_wrong_class_is_refused_before_a_model_is_looked_for(value: Any, message: str, face: Any) -> None:
    with pytest.raises(ConfigError, match="logits_processors") as caught:
        face(model="/there/is/no/such/model", logits_processors=value)
    assert message in str(caught.value)
    assert caught.value.field == "logits_processors"


def test_a_class_that_cannot_be_set_up_is_refused_before_weights_are_loaded(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(
        ConfigError, match="NeedsFactor cannot be set up: LookupError: additional_config has no"
    ) as caught:
        LLM(**options(tmp_path, NeedsFactor))
    assert caught.value.field == "logits_processors"


def test_a_class_of_the_main_program_serves_in_its_own_process() -> None:
    config = EngineArgs("demo", logits_processors=Steer).create_config()
    assert config.model.logits_processors == [f"{MODULE}:Steer"]
    code = """
from vllm_engine import LLM, SamplingParams
from vllm_engine.sampling.processors import LogitsProcessor

class Only(LogitsProcessor):
    def new_req_logits_processor(self, params, prompt_token_ids):
        def only(output_token_ids, logits):
            kept = logits[65].clone()
            logits.fill_(float("-inf"))
            logits[65] = kept
        return only

if __name__ == "__main__":
    with LLM("demo", logits_processors=[Only]) as llm:
        print(llm.generate("Hi", SamplingParams(max_tokens=3), use_tqdm=False)[0].outputs[0].token_ids)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[-2] in ("[65, 65, 65]", "(65, 65, 65)")


def test_the_command_ends_with_code_2_for_a_class_that_is_not_there() -> None:
    command = [sys.executable, "-m", "vllm_cli", "serve", "demo", "--port", "0", "--logits-processors", "nowhere:X"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--logits-processors" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_frontend_needs_no_torch_to_check_requests() -> None:
    code = f"""
import sys
from vllm_engine import EngineArgs
from vllm_engine.frontend.engine_frontend import resolve_config
import vllm_engine.sampling.processors, vllm_engine.frontend.extra_args
resolve_config(EngineArgs("demo", logits_processors=[]))
print("torch" in sys.modules)
try:
    resolve_config(EngineArgs("demo", logits_processors=["{MODULE}:Steer"]))
finally:
    print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["False", "True"]  # that class imports torch itself
