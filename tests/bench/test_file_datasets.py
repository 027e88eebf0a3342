"""Workloads that come from files of prompts and conversations."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.bench.workload_items import items_of, options_of, rendered
from vllm_bench.workload.item import Messages
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_cli.command import CommandError

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"


def words(count: int, word: str = "day") -> str:
    return " ".join([word] * count)


def talk(*said: str, form: str = "conversations") -> dict:
    """A conversation in which the two take turns."""
    if form == "messages":
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]}
    return {
        "id": "x",
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)],
    }


def sharegpt(folder: Path, *conversations: dict, lines: bool = False) -> list[str]:
    """Options for a file of these."""
    path = folder / "talks.json"
    path.write_text("\n".join(map(json.dumps, conversations)) if lines else json.dumps(conversations))
    return ["--dataset-name", "sharegpt", "--dataset-path", str(path)]


def custom(folder: Path, *lines: dict) -> list[str]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--dataset-name", "custom", "--dataset-path", str(path)]


def test_questions_of_spec_bench_are_those_of_its_category(tmp_path):
    path = tmp_path / "question.jsonl"
    lines = [
        {"question_id": n, "category": ("writing", "math")[n % 2], "turns": [f"first {n}", "second"]} for n in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--dataset-name", "spec_bench", "--dataset-path", path, "--disable-shuffle", "--no-oversample"]
    items = items_of(*options, "--skip-chat-template")
    assert [(item.prompt, item.output_len) for item in items] == [(f"first {n}", 256) for n in range(6)]
    items = items_of(*options, "--spec-bench-category", "math", "--spec-bench-output-len", 9)
    assert [(item.prompt, item.output_len) for item in items] == [
        (rendered(Messages([{"role": "user", "content": f"first {n}"}])), 9) for n in (1, 3, 5)
    ]
    with pytest.raises(CommandError, match=r"--spec-bench-category maths: .* has writing, math"):
        items_of(*options, "--spec-bench-category", "maths")
    path.write_text('{"category": "math", "turns": []}\n')
    with pytest.raises(CommandError, match=r"question\.jsonl, line 1: 'turns'"):
        items_of(*options)


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("form", ["conversations", "messages"])
def test_of_a_conversation_the_first_question_is_asked_with_room_for_its_answer(tmp_path, lines, form):
    talks = [talk(words(5, f"w{number}"), words(6 + number), words(9), words(9), form=form) for number in range(3)]
    items = items_of(*sharegpt(tmp_path, *talks, lines=lines), "--disable-shuffle", "--num-prompts", 3)
    assert [item.prompt for item in items] == [words(5, f"w{number}") for number in range(3)]
    assert [item.output_len for item in items] == [6, 7, 8]
    assert [item.prompt_len for item in items] == [None] * 3


def test_lengths_are_those_of_the_tokenizer(tmp_path):
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    question, answer = "Where do children learn?", "At school, most of the time, and from one another."
    options = [*sharegpt(tmp_path, talk(question, answer)), "--num-prompts", 1]
    (item,) = items_of(*options, text=TokenizerText(DEMO))
    assert (item.prompt_len, item.output_len) == (len(tokenizer.encode(question)), len(tokenizer.encode(answer)))


def test_conversations_that_are_too_short_or_too_long_are_left_out(tmp_path):
    good = [(4, 4), (1024, 1024), (1000, 1048)]
    bad = [(3, 9), (9, 3), (1025, 9), (1024, 1025), (900, 1149)]
    talks = [talk(words(asked), words(answered)) for asked, answered in [*bad, *good]]
    talks += [talk(words(9)), talk(), {"conversations": [{"from": "gpt", "value": words(9)}] * 2}]
    talks += [{"conversations": [{"from": "human", "value": words(9)}] * 2}]
    options = [*sharegpt(tmp_path, *talks), "--no-oversample", "--disable-shuffle"]
    lengths = [(len(str(item.prompt).split()), item.output_len) for item in items_of(*options)]
    assert lengths == good
    # With a length of its own for answers, what the file's have does not matter.
    lengths = [len(str(item.prompt).split()) for item in items_of(*options, "--sharegpt-output-len", 3)]
    assert lengths == [9, 1024, 900, 4, 1024, 1000]


def test_what_comes_before_the_first_question_is_passed_over(tmp_path):
    turns = [{"from": "system", "value": "be kind"}, {"from": "gpt", "value": "hello"}]
    turns += [{"from": "user", "value": words(5)}, {"from": "chatgpt", "value": words(7)}]
    (item,) = items_of(*sharegpt(tmp_path, {"conversations": turns}), "--num-prompts", 1)
    assert (item.prompt, item.output_len) == (words(5), 7)


def test_a_file_with_less_than_is_asked_for_is_sent_again_and_again(tmp_path):
    options = custom(tmp_path, *({"prompt": f"prompt {number}"} for number in range(3)))
    options += ["--skip-chat-template"]
    prompts = [item.prompt for item in items_of(*options, "--num-prompts", 7)]
    assert prompts == [*prompts[:3], *prompts[:3], prompts[0]]
    assert {*prompts} == {"prompt 0", "prompt 1", "prompt 2"}
    assert len(items_of(*options, "--num-prompts", 7, "--no-oversample")) == 3
    ended = items_of(*options, "--duration", 1, "--max-concurrency", 1, "--no-oversample")
    assert len(ended) == 3


def test_the_order_is_that_of_the_seed_or_of_the_file(tmp_path):
    options = custom(tmp_path, *({"prompt": f"{number:02}"} for number in range(30)))
    options += ["--skip-chat-template", "--num-prompts", 30]

    def order(*more: object) -> list[str]:
        return [str(item.prompt) for item in items_of(*options, *more)]

    in_file = [f"{number:02}" for number in range(30)]
    assert order("--disable-shuffle") == in_file
    assert order() == order("--seed", 0) != order("--seed", 1)
    assert order() != in_file
    assert sorted(order()) == in_file


def test_answers_of_a_custom_file_have_one_length_or_their_own(tmp_path):
    options = custom(tmp_path, {"prompt": "a", "output_tokens": 3}, {"prompt": "b", "output_tokens": 5})
    options += ["--disable-shuffle", "--num-prompts", 2]
    assert [item.output_len for item in items_of(*options)] == [256, 256]
    assert [item.output_len for item in items_of(*options, "--custom-output-len", 9)] == [9, 9]
    assert [item.output_len for item in items_of(*options, "--custom-output-len", -1)] == [3, 5]
    assert [item.output_len for item in items_of(*options, "--custom-output-len", -1, "--output-len", 8)] == [8, 8]


def test_a_prompt_for_an_api_of_texts_is_put_into_the_chat_template_once(tmp_path):
    options = custom(tmp_path, {"prompt": "one two three"}, {"messages": [{"role": "user", "content": "one"}]})
    options += ["--disable-shuffle", "--num-prompts", 4]
    asked = []

    def render(messages: Messages) -> list[int]:
        asked.append(messages)
        return [1, 2, 3, 4]

    items = items_of(*options, render=render)
    assert [(item.prompt, item.prompt_len) for item in items] == [([1, 2, 3, 4], 4)] * 4
    assert [message["content"] for (message,) in asked] == ["one two three", "one"]
    assert items_of(*options, "--skip-chat-template", render=render)[0].prompt == "one two three"
    chat = items_of(*options, "--backend", "openai-chat", render=render)
    assert chat[0].prompt == "one two three"
    assert chat[1].prompt == Messages([{"role": "user", "content": "one"}])
    assert len(asked) == 3  # nobody asks for what the server does itself

    def cannot(messages: Messages) -> list[int]:
        raise LookupError("no template")

    with pytest.raises(CommandError, match="--skip-chat-template") as error:
        items_of(*options, render=cannot)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({}, "there is no 'prompt'"),
        ({"prompt": ""}, "'prompt' is no text"),
        ({"prompt": 3}, "'prompt' is no text"),
        ({"messages": []}, "'messages' needs"),
        ({"messages": [{"content": "x"}]}, "'messages' needs"),
        ({"messages": ["x"]}, "'messages' is no list"),
        ({"prompt": "x"}, "there is no 'output_tokens'"),
        ({"prompt": "x", "output_tokens": "9"}, "'output_tokens' is no whole number"),
    ],
)
def test_a_bad_line_of_a_custom_file_is_named(tmp_path, line, what):
    options = custom(tmp_path, {"prompt": "good", "output_tokens": 1}, line)
    with pytest.raises(CommandError, match=f"prompts.jsonl, line 2: {what}") as error:
        items_of(*options, "--custom-output-len", -1, "--skip-chat-template", "--num-prompts", 1)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({}, "there is no 'conversations'"),
        ({"conversations": "x"}, "'conversations' is no list"),
        ({"conversations": [{"from": "human"}]}, "a turn needs 'from' and 'value'"),
        ({"messages": [{"role": "user", "content": 3}]}, "a turn needs 'role' and 'content'"),
    ],
)
@pytest.mark.parametrize("name", ["sharegpt", "multi_turn"])
def test_a_bad_entry_of_a_sharegpt_file_is_named(tmp_path, entry, what, name):
    options = [*sharegpt(tmp_path, talk(words(5), words(5)), entry, lines=True), "--dataset-name", name]
    with pytest.raises(CommandError, match=f"talks.json, line 2: {what}"):
        items_of(*options)


def test_a_file_without_anything_to_send_is_refused(tmp_path):
    for name in ("sharegpt", "custom", "timed_trace", "multi_turn"):
        path = tmp_path / "empty.jsonl"
        path.write_text("")
        with pytest.raises(CommandError, match=f"holds nothing that {name} can send"):
            items_of("--dataset-name", name, "--dataset-path", path)


@pytest.mark.parametrize("name", ["sharegpt", "custom", "burstgpt", "timed_trace", "multi_turn"])
def test_options_that_such_a_dataset_cannot_follow_are_refused(tmp_path, name):
    with pytest.raises(CommandError, match="needs --dataset-path"):
        items_of("--dataset-name", name)
    with pytest.raises(CommandError, match="--input-len"):
        items_of("--dataset-name", name, "--dataset-path", tmp_path / "x", "--input-len", 5)
    with pytest.raises(CommandError, match="absent"):
        items_of("--dataset-name", name, "--dataset-path", tmp_path / "absent")


def test_options_out_of_range_are_refused(capsys):
    for options in (["--custom-output-len", "0"], ["--custom-output-len", "-2"], ["--sharegpt-output-len", "0"]):
        with pytest.raises(SystemExit):
            options_of(*options)
        assert options[0] in capsys.readouterr().err
