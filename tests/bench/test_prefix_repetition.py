"""Prompts that begin alike, counted by a real tokenizer."""

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.bench.workload_items import items_of
from vllm_bench.workload.tokenizer_text import TokenizerText

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"
OPTIONS = ["--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", 40]
OPTIONS += ["--prefix-repetition-suffix-len", 9, "--prefix-repetition-num-prefixes", 4]
OPTIONS += ["--prefix-repetition-output-len", 6, "--num-prompts", 22]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_each_prefix_comes_equally_often_and_nothing_else_is_shared(tokenizer: Tokenizer):
    items = items_of(*OPTIONS, text=TokenizerText(DEMO))
    ids = [tokenizer.encode(item.prompt).ids for item in items]
    assert {len(prompt) for prompt in ids} == {item.prompt_len for item in items} == {49}
    assert {item.output_len for item in items} == {6}
    prefixes = Counter(tuple(prompt[:40]) for prompt in ids)
    assert sorted(prefixes.values()) == [5, 5, 6, 6]
    assert len({tuple(prompt[40:]) for prompt in ids}) == 22


def test_prefixes_come_in_turn_without_shuffling(tokenizer: Tokenizer):
    def order(*more: object) -> list[str]:
        return [str(item.prompt)[:60] for item in items_of(*OPTIONS, *more, text=TokenizerText(DEMO))]

    in_turn = order("--disable-shuffle")
    assert in_turn[:4] == in_turn[4:8]
    assert order() != in_turn


def test_the_general_lengths_win():
    items = items_of(*OPTIONS, "--input-len", 3, "--output-len", 2)
    assert {(len(str(item.prompt).split()), item.output_len) for item in items} == {(43, 2)}
