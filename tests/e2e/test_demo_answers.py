"""The embedded demo model, asked through the engine: it answers, stops, admits not knowing, thinks and calls tools."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_engine import LLM, RequestOutput, SamplingParams

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "demo_prompts.json").read_text())
GREEDY = SamplingParams(temperature=0.0, max_tokens=120)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", use_tqdm_on_load=False, kv_cache_memory_bytes=256 * 2**20) as llm:
        yield llm


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    return case.get("messages") or [{"role": "user", "content": case["prompt"]}]


def is_right(case: dict[str, Any], output: RequestOutput) -> bool:
    """Ended by itself, says one of the expected things and none of the rejected ones."""
    answer = output.outputs[0]
    found = any(re.search(pattern, answer.text, re.IGNORECASE) for pattern in case["expect"])
    wrong = any(re.search(pattern, answer.text, re.IGNORECASE) for pattern in case.get("reject", ()))
    return answer.finish_reason == "stop" and found and not wrong


def wrong_ones(cases: list[dict[str, Any]], outputs: list[RequestOutput]) -> list[str]:
    return [
        f"{messages(case)[-1]['content']!r} -> {output.outputs[0].text!r}"
        for case, output in zip(cases, outputs, strict=True)
        if not is_right(case, output)
    ]


def ask(llm: LLM, cases: list[dict[str, Any]], **options: Any) -> list[str]:
    outputs = llm.chat([messages(case) for case in cases], GREEDY, use_tqdm=False, **options)
    return wrong_ones(cases, outputs)


def test_it_answers_at_least_95_percent_of_200_questions(llm: LLM) -> None:
    assert len(CASES["prompts"]) == 200
    wrong = ask(llm, CASES["prompts"])
    assert len(wrong) <= 10, "\n".join(wrong)


def test_it_says_that_it_does_not_know(llm: LLM) -> None:
    wrong = ask(llm, CASES["unknown"])
    assert len(wrong) <= len(CASES["unknown"]) // 6, "\n".join(wrong)


def test_asked_to_think_it_writes_a_short_think_block_first(llm: LLM) -> None:
    wrong: list[str] = []
    for flag in (True, False):
        cases = [case for case in CASES["think"] if case.get("enable_thinking", False) is flag]
        if cases:
            wrong += ask(llm, cases, chat_template_kwargs={"enable_thinking": flag})
    assert len(wrong) <= len(CASES["think"]) // 10, "\n".join(wrong)


def test_given_the_weather_tool_it_calls_it(llm: LLM) -> None:
    wrong = ask(llm, CASES["tools"], tools=CASES["weather_tools"])
    assert len(wrong) <= len(CASES["tools"]) // 10, "\n".join(wrong)


def test_it_follows_a_conversation(llm: LLM) -> None:
    wrong = ask(llm, CASES["chats"])
    assert len(wrong) <= len(CASES["chats"]) // 10, "\n".join(wrong)


def test_it_completes_plain_text(llm: LLM) -> None:
    cases = CASES["completions"]
    outputs = llm.generate([case["prompt"] for case in cases], GREEDY, use_tqdm=False)
    wrong = [
        f"{case['prompt']!r} -> {output.outputs[0].text!r}"
        for case, output in zip(cases, outputs, strict=True)
        if not any(re.search(pattern, output.outputs[0].text, re.IGNORECASE) for pattern in case["expect"])
    ]
    assert len(wrong) <= len(cases) // 4, "\n".join(wrong)
