import itertools
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.random_prompts import DATASET, _ratios
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.text import TextSource
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_bench.workload.words import ServerCountedWords, UncountedWords
from vllm_cli.command import CommandError

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"


def prompts(text: TextSource, *arguments: str, seed: int = 0, count: int = 50) -> list[WorkItem]:
    parser = ArgumentParser()
    parser.add_argument("--input-len", type=int)
    parser.add_argument("--output-len", type=int)
    DATASET.add_arguments(parser)
    return list(itertools.islice(DATASET.items(parser.parse_args(arguments), text, generator(seed, "prompts")), count))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_by_a_tokenizer_the_count_is_the_tokenizers(tokenizer: Tokenizer):
    items = prompts(TokenizerText(DEMO), "--random-input-len", "40", "--random-output-len", "7")
    assert [item.prompt_len for item in items] == [len(tokenizer.encode(item.prompt).ids) for item in items]
    assert sum(item.prompt_len == 40 for item in items) >= 0.8 * len(items)
    assert all(item.output_len == 7 for item in items)


def test_by_the_server_words_add_up_to_the_wanted_count(tokenizer: Tokenizer):
    text = ServerCountedWords(lambda words: 1 + len(tokenizer.encode(words).ids))  # 1: a BOS
    for item in prompts(text, "--input-len", "40"):
        assert item.prompt_len == len(tokenizer.encode(item.prompt).ids) == 40


def test_words_of_a_token_each_take_two_questions():
    asked: list[str] = []

    def count(words: str) -> int:
        asked.append(words)
        return len(words.split())

    assert prompts(ServerCountedWords(count), "--input-len", "9", count=1)[0].prompt_len == 9
    assert len(asked) == 2


def test_without_a_counter_there_are_as_many_words_and_no_count():
    (item,) = prompts(UncountedWords(), "--input-len", "9", count=1)
    assert (len(item.prompt.split()), item.prompt_len) == (9, None)


def test_lengths_are_uniform_within_the_range():
    items = prompts(
        UncountedWords(), "--input-len", "10", "--output-len", "20", "--random-range-ratio", "0.5", count=400
    )
    lengths = [len(item.prompt.split()) for item in items]
    assert set(lengths) == set(range(5, 16))
    assert {item.output_len for item in items} == set(range(10, 31))
    one = prompts(UncountedWords(), "--input-len", "10", "--random-range-ratio", '{"output": 0.5}')
    assert {len(item.prompt.split()) for item in one} == {10}
    assert len({item.output_len for item in one}) > 9


def test_a_prefix_is_shared_and_comes_on_top():
    items = prompts(UncountedWords(), "--input-len", "5", "--random-prefix-len", "8")
    assert {len(item.prompt.split()) for item in items} == {13}
    assert len({tuple(item.prompt.split()[:8]) for item in items}) == 1
    assert len({item.prompt for item in items}) > 1


def test_a_seed_makes_the_same_prompts_again():
    text = TokenizerText(DEMO)
    assert prompts(text, seed=5, count=3) == prompts(TokenizerText(DEMO), seed=5, count=3)
    assert prompts(text, seed=5, count=3) != prompts(text, seed=6, count=3)


@pytest.mark.parametrize("text", ["1", "-0.1", "x", '{"input": 2}', '{"inputs": 0.1}', "[0.1]"])
def test_a_ratio_out_of_range_is_refused(text: str):
    with pytest.raises(ArgumentTypeError):
        _ratios(text)


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(CommandError, match="there is no tokenizer"):
        TokenizerText(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CommandError, match="--tokenizer"):
        TokenizerText(tmp_path)
