"""Score a finished model on the prompts of the tests, with the Qwen3 of ``transformers``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

Question = dict[str, Any]


def passes(answer: str, question: Question) -> bool:
    """Whether ``answer`` is right: one of ``expect`` is found, and none of ``reject``."""
    found = any(re.search(p, answer, re.IGNORECASE) for p in question["expect"])
    return found and not any(re.search(p, answer, re.IGNORECASE) for p in question.get("reject", []))


@torch.inference_mode()
def generate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int = 160
) -> list[str]:
    """Greedy answers; one that does not stop by itself ends in ``[did not stop]``."""
    answers: list[str] = []
    tokenizer.padding_side = "left"
    for at in range(0, len(prompts), 32):
        inputs = tokenizer(prompts[at : at + 32], return_tensors="pt", padding=True)
        out = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        for row in out[:, inputs["input_ids"].shape[1] :].tolist():
            stops = [row.index(t) for t in model.generation_config.eos_token_id if t in row]
            text = str(tokenizer.decode(row[: min(stops)] if stops else row, skip_special_tokens=True))
            answers.append(text if stops else text + " [did not stop]")
    return answers


def _cases(prompts: dict[str, Any]) -> list[tuple[str, list[Question], dict[str, Any], Question]]:
    """``(category, messages, template arguments, expectation)`` of every turn of every list."""
    cases: list[tuple[str, list[Question], dict[str, Any], Question]] = [
        (q["category"], [{"role": "user", "content": q["prompt"]}], {}, q) for q in prompts["prompts"]
    ]
    for name in ("unknown", "think", "chats", "tools"):
        for q in prompts[name]:
            messages = q.get("messages") or [{"role": "user", "content": q["prompt"]}]
            extra: dict[str, Any] = {"enable_thinking": True} if q.get("enable_thinking") else {}
            if name == "tools":
                extra["tools"] = prompts["weather_tools"]
            cases.append((name, messages, extra, q))
    for q in prompts["completions"]:
        cases.append(("completions", [], {}, q))
    return cases


def evaluate(folder: Path, prompts_file: Path) -> float:
    """Print the score of every category and every wrong answer; return the share of the main list."""
    prompts = json.loads(prompts_file.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cases = _cases(prompts)
    texts = [
        str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **extra))
        if messages
        else question["prompt"]
        for _, messages, extra, question in cases
    ]
    # Neighbours of like length waste less padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = dict(zip(order, generate(model, tokenizer, [texts[i] for i in order]), strict=True))
    score: dict[str, list[int]] = {}
    for i, (category, messages, _, question) in enumerate(cases):
        right = passes(answers[i], question) and "[did not stop]" not in answers[i]
        score.setdefault(category, []).append(right)
        if not right:
            asked = messages[-1]["content"] if messages else question["prompt"]
            print(f"wrong [{category}] {asked!r} -> {answers[i]!r}")
    for category, results in score.items():
        print(f"{category:12} {sum(results)}/{len(results)}")
    main = [r for c in {q["category"] for q in prompts["prompts"]} for r in score[c]]
    print(f"{'all prompts':12} {sum(main)}/{len(main)} = {sum(main) / len(main):.1%}", flush=True)
    return sum(main) / len(main)
