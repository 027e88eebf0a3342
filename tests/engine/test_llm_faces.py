"""``LLM`` on a scripted core and on the built-in model."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend.scripted_core import InprocDouble, ScriptedCore, echo, ids, model_folder, says
from vllm_engine import LLM, OutputKind, SamplingParams
from vllm_engine.errors import ConfigError, EngineDead, InvalidRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def make_llm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLM]:
    def make(core: ScriptedCore, **options: Any) -> LLM:
        monkeypatch.setattr(LLM, "_create_client", lambda *_: InprocDouble(core))
        return LLM(str(folder), **options)

    return make


def test_outputs_stand_in_the_order_of_the_prompts(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(ScriptedCore(echo))
    prompts: list[Any] = ["the cat sat on the mat", ids("a"), {"prompt": "hello"}, {"prompt_token_ids": ids("dog")}]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=50), use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == ["the cat sat on the mat", "a", "hello", "dog"]
    assert all(output.finished and output.outputs[0].finish_reason == "stop" for output in outputs)
    assert [output.prompt for output in outputs] == ["the cat sat on the mat", None, "hello", None]


def test_one_prompt_may_stand_alone(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(ScriptedCore(echo))
    for prompt in ("the cat", ids("the cat"), {"prompt": "the cat"}):
        (output,) = llm.generate(prompt, SamplingParams(max_tokens=50), use_tqdm=False)
        assert output.outputs[0].text == "the cat"
    assert llm.generate([], use_tqdm=False) == []


def test_parameters_may_be_given_for_each_prompt(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(says("the cat sat"))
    llm = make_llm(core)
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
    outputs = llm.generate(["a", "b"], params, use_tqdm=False, priority=[3, -1])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2]
    assert [request.priority for request in core.added] == [3, -1]
    for wrong in ({"sampling_params": params[:1]}, {"priority": [1]}):
        with pytest.raises(InvalidRequest) as caught:
            llm.generate(["a", "b"], use_tqdm=False, **wrong)  # type: ignore[arg-type]
        assert caught.value.field == next(iter(wrong))


def test_without_parameters_the_models_own_defaults_hold(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(says("the cat"))
    llm = make_llm(core)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.25, max_tokens=7)
    llm.generate("a", use_tqdm=False)
    assert (core.added[0].params.temperature, core.added[0].max_tokens) == (0.25, 7)
    llm.generate("a", SamplingParams(), use_tqdm=False)
    assert (core.added[1].params.temperature, core.added[1].max_tokens) == (1.0, 16)


@pytest.mark.parametrize("params", [{"n": 1}, 5, "x", [{"n": 1}]])
def test_parameters_of_another_type_are_refused(make_llm: Callable[..., LLM], params: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_llm(ScriptedCore(echo)).generate("a", params, use_tqdm=False)
    assert caught.value.field == "sampling_params"


def test_a_priority_that_is_no_list_is_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_llm(ScriptedCore(echo)).generate("a", use_tqdm=False, priority=5)  # type: ignore[arg-type]
    assert caught.value.field == "priority"


def test_conversations_mixed_with_something_else_are_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_llm(ScriptedCore(echo)).chat([[{"role": "user", "content": "a"}], 5], use_tqdm=False)  # type: ignore[list-item]
    assert caught.value.field == "messages"


def test_the_output_kind_makes_no_difference_to_finished_outputs(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(ScriptedCore(says("the cat sat")))
    texts = {
        llm.generate("a", SamplingParams(output_kind=kind), use_tqdm=False)[0].outputs[0].text for kind in OutputKind
    }
    assert texts == {"the cat sat"}


def test_stop_strings_abort_in_the_core(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(says("the cat sat on the mat"))
    (output,) = make_llm(core).generate("a", SamplingParams(stop="sat", max_tokens=None), use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("the cat ", "sat")
    assert core.aborted == [core.added[0].request_id]


def test_one_bad_prompt_is_refused_before_anything_runs(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(echo)
    llm = make_llm(core)
    with pytest.raises(InvalidRequest):
        llm.generate(["good", [10**6]], use_tqdm=False)
    assert core.added == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_interruption_the_engine_is_empty_and_usable(
    make_llm: Callable[..., LLM], error: type[BaseException]
) -> None:
    core = ScriptedCore(says("the cat sat on the mat"))
    llm = make_llm(core)
    steps = iter([None, error()])

    def interrupted() -> Any:
        fault = next(steps, None)
        if fault is not None:
            raise fault
        return core.step()

    llm._client.step = interrupted  # type: ignore[union-attr, method-assign]
    with pytest.raises(error):
        llm.generate(["a", "b"], use_tqdm=False)
    assert core.running == {}
    assert sorted(core.aborted) == sorted(request.request_id for request in core.added)
    (output,) = llm.generate("a", SamplingParams(max_tokens=50), use_tqdm=False)
    assert output.outputs[0].text == "the cat sat on the mat"


def test_a_request_that_fails_in_the_core_leaves_the_others_alone(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(ScriptedCore(echo, errors={0: "NaN"}))
    failed, good = llm.generate(["a", "the"], SamplingParams(max_tokens=50), use_tqdm=False)
    assert (failed.outputs[0].finish_reason, failed.outputs[0].error) == ("error", "NaN")
    assert good.outputs[0].text == "the"


def test_a_core_that_forgets_a_request_does_not_hang_the_caller(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(echo)
    llm = make_llm(core)
    core.has_unfinished = lambda: False  # type: ignore[method-assign]
    llm._client.has_unfinished = lambda: False  # type: ignore[union-attr, method-assign]
    with pytest.raises(EngineDead):
        llm.generate("a", use_tqdm=False)


def test_chat_renders_the_template_without_second_special_tokens(make_llm: Callable[..., LLM]) -> None:
    core = ScriptedCore(says("hello"))
    llm = make_llm(core)
    conversation = [{"role": "user", "content": "Hi"}]
    (output,) = llm.chat(conversation, use_tqdm=False)
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt == text
    assert output.prompt_token_ids == ids(text)
    assert output.outputs[0].text == "hello"
    assert len(llm.chat([conversation, conversation], use_tqdm=False)) == 2
    going_on = [*conversation, {"role": "assistant", "content": "Well"}]
    (output,) = llm.chat(going_on, use_tqdm=False, add_generation_prompt=False, continue_final_message=True)
    assert str(output.prompt).endswith("assistant\nWell")
    for wrong in ([], "hello", [[]]):
        with pytest.raises(InvalidRequest):
            llm.chat(wrong, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        llm.chat(conversation, use_tqdm=False, chat_template_kwargs={"tools": []})


def test_the_progress_bar_shows_tokens_per_second(make_llm: Callable[..., LLM]) -> None:
    class Bar:
        total = done = closed = 0
        postfix = ""

        def __init__(self, *, total: int, **_: Any) -> None:
            Bar.total = total

        def update(self, count: int) -> None:
            Bar.done += count

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            Bar.postfix = text

        def close(self) -> None:
            Bar.closed += 1

    make_llm(ScriptedCore(echo)).generate(["a", "b", "c"], use_tqdm=Bar)
    assert (Bar.total, Bar.done, Bar.closed) == (3, 3, 1)
    assert "tok/s" in Bar.postfix


def test_the_usual_progress_bar_goes_to_stderr(make_llm: Callable[..., LLM], capfd: pytest.CaptureFixture[str]) -> None:
    llm = make_llm(ScriptedCore(echo))
    llm.generate("a", use_tqdm=False)
    assert capfd.readouterr() == ("", "")
    llm.generate("a")
    out, err = capfd.readouterr()
    assert out == ""
    assert "tok/s" in err


def test_a_closed_engine_says_so(make_llm: Callable[..., LLM]) -> None:
    with make_llm(ScriptedCore(echo)) as llm:
        client = llm._client
    llm.close()
    assert client.closed == 1  # type: ignore[union-attr]
    with pytest.raises(EngineDead):
        llm.generate("a", use_tqdm=False)


def test_a_forgotten_engine_is_closed_and_a_broken_one_leaves_no_noise(
    make_llm: Callable[..., LLM], capsys: pytest.CaptureFixture[str]
) -> None:
    llm = make_llm(ScriptedCore(echo))
    client = llm._client
    del llm
    gc.collect()
    assert client.closed == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError):
        LLM("demo", no_such_setting=1)
    gc.collect()
    assert capsys.readouterr().err == ""


def test_without_a_tokenizer_ids_come_and_go(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(ScriptedCore(says("the cat")), skip_tokenizer_init=True)
    (output,) = llm.generate([5, 6], use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", ids("the cat"))
    with pytest.raises(InvalidRequest):
        llm.get_tokenizer()


def test_the_built_in_model_answers() -> None:
    with LLM("demo", max_model_len=256, num_gpu_blocks_override=64) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=8)
        first, second = llm.generate(["The capital of France is", "Once upon a time"], greedy, use_tqdm=False)
        assert first.outputs[0].text == llm.get_tokenizer().decode(first.outputs[0].token_ids)
        again = llm.generate("Once upon a time", greedy, use_tqdm=False)
        assert again[0].outputs[0].token_ids == second.outputs[0].token_ids
        (chat,) = llm.chat([{"role": "user", "content": "Say hello."}], greedy, use_tqdm=False)
        assert chat.outputs[0].text
        assert "<|im_end|>" not in chat.outputs[0].text
