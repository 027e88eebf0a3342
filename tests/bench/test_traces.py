"""Traces of services: lengths, moments and shared beginnings."""

import itertools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.bench.workload_items import items_of, options_of
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_cli.command import CommandError

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"

BURST_HEADER = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"


def trace(folder: Path, *lines: dict) -> list[object]:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--dataset-name", "timed_trace", "--dataset-path", path]


def line(moment: float, asked: int, answered: int, *ids: int) -> dict:
    return {"timestamp": moment, "input_length": asked, "output_length": answered, "hash_ids": list(ids)}


def burst(folder: Path, *rows: str, header: str = BURST_HEADER) -> list[object]:
    path = folder / "burst.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return ["--dataset-name", "burstgpt", "--dataset-path", path]


def common(one: list, other: list) -> list:
    """What both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [first for first, _ in pairs]


@pytest.mark.parametrize("size", [16, 5])
def test_lengths_are_exact_and_hash_ids_make_shared_beginnings(tmp_path: Path, size: int):
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    a, b, c, own = range(1, 5)
    lines = [
        line(0, 3 * size, 9, a, b, c),
        line(1, 3 * size, 8, a, b, own),
        line(2, 2 * size + 3, 7, a, c),  # the last three tokens have no id
        line(3, size + 2, 6, a, b),  # a part of b
        line(4, size - 1, 5, b, a),  # more ids than tokens
        line(5, 2 * size, 4),
    ]
    options = [*trace(tmp_path, *lines), "--timed-trace-chunk-hash-size", size]
    items = items_of(*options, text=TokenizerText(DEMO))
    ids = [tokenizer.encode(item.prompt).ids for item in items]
    assert (
        [len(prompt) for prompt in ids] == [item.prompt_len for item in items] == [one["input_length"] for one in lines]
    )
    assert [item.output_len for item in items] == [9, 8, 7, 6, 5, 4]

    def shared(first: int, second: int) -> int:
        return len(common(ids[first], ids[second]))

    assert shared(0, 1) == 2 * size
    assert shared(0, 2) == size
    assert ids[2][size : 2 * size] == ids[0][2 * size :]  # an id is the same text wherever it stands
    assert shared(0, 3) == size + 2
    assert all(shared(4, other) < 3 and shared(5, other) < 3 for other in range(4))


def test_another_seed_makes_other_texts_with_the_same_sharing(tmp_path: Path):
    options = [*trace(tmp_path, line(0, 32, 1, 1, 2), line(0, 32, 1, 1, 3)), "--timed-trace-chunk-hash-size", 16]
    first, other = (items_of(*options, "--seed", seed) for seed in (0, 1))
    assert first == items_of(*options)
    for items in (first, other):
        one, two = (str(item.prompt).split() for item in items)
        assert len(common(one, two)) == 16
    assert not {item.prompt for item in first} & {item.prompt for item in other}


def test_moments_count_from_the_first_in_the_multiplied_unit(tmp_path: Path):
    lines = [line(5000, 1, 1), line(7500, 2, 1), line(7500, 3, 1), line(6000, 4, 1)]
    options = trace(tmp_path, *lines)
    items = items_of(*options, "--self-timed", "--timed-trace-sec-multiplier", 0.001)
    assert [(item.offset, len(str(item.prompt).split())) for item in items] == [(0, 1), (1, 4), (2.5, 2), (2.5, 3)]
    # Without, the file's order, and whatever moments the rate has.
    for more in ([], ["--no-self-timed"]):
        assert [(item.offset, len(str(item.prompt).split())) for item in items_of(*options, *more)] == [
            (None, length) for length in (1, 2, 3, 4)
        ]
    paced = items_of(*options, "--request-rate", 4, "--burstiness", "inf")
    assert [item.offset for item in paced] == [0.25, 0.5, 0.75, 1.0]


def test_a_trace_is_sent_once_and_no_further_than_asked(tmp_path: Path):
    options = trace(tmp_path, *(line(number, 1, 1) for number in range(5)))
    assert len(items_of(*options, "--num-prompts", 9)) == 5
    assert [item.offset for item in items_of(*options, "--num-prompts", 2, "--self-timed")] == [0, 1]
    assert len(items_of(*options, "--duration", 3, "--self-timed")) == 5  # the run stops, not the workload


def test_fields_may_have_other_names(tmp_path: Path):
    names = {"timestamp": "t", "input-length": "in", "output-length": "out", "hash-ids": "blocks"}
    options = trace(
        tmp_path, {"t": 1, "in": 4, "out": 2, "blocks": ["x"]}, {"t": 3, "in": 4, "out": 3, "blocks": ["x"]}
    )
    options += itertools.chain.from_iterable((f"--timed-trace-label-{key}", name) for key, name in names.items())
    first, second = items_of(*options, "--self-timed")
    assert (first.prompt, first.output_len, second.offset, second.output_len) == (second.prompt, 2, 2.0, 3)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"input_length": 0}, "'input_length' is no whole number"),
        ({"output_length": None}, "'output_length' is no whole number"),
        ({"timestamp": "now"}, "'timestamp' is no number"),
        ({"hash_ids": 3}, "'hash_ids' is no list of ids"),
        ({"hash_ids": [1.5]}, "'hash_ids' is no list of ids"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, change: dict, what: str):
    with pytest.raises(CommandError, match=f"trace.jsonl, line 2: {what}"):
        items_of(*trace(tmp_path, line(0, 1, 1), line(0, 1, 1) | change), "--self-timed")


def test_burstgpt_rows_are_those_of_a_model_that_were_answered(tmp_path: Path):
    rows = ["45,,3,GPT-4,10,4,14,API log", "40,,3,ChatGPT,11,5,16,API log", "44,,3,GPT-4,12,0,12,API log"]
    rows += ["42.5,1,3,GPT-4,13,7,20,Conversation log", "50,,3,GPT-4,0,7,7,API log"]
    options = burst(tmp_path, *rows)

    def lengths(*more: object) -> list[tuple]:
        return [(len(str(item.prompt).split()), item.output_len, item.offset) for item in items_of(*options, *more)]

    assert lengths("--no-oversample", "--disable-shuffle") == [(10, 4, None), (13, 7, None)]
    assert lengths("--no-oversample", "--disable-shuffle", "--burstgpt-model", "all")[1] == (11, 5, None)
    assert lengths("--self-timed") == [(13, 7, 0.0), (10, 4, 2.5)]
    assert lengths("--self-timed", "--timed-trace-sec-multiplier", 0.1)[1] == (10, 4, 0.25)
    assert len(lengths("--num-prompts", 5)) == 5
    with pytest.raises(CommandError, match="holds nothing"):
        lengths("--burstgpt-model", "none")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("x,,3,GPT-4,10,4,14,API log", "line 3: 'Timestamp'"),
        ("1,,3,GPT-4,ten,4,14,API log", "line 3: 'Request tokens'"),
        ("1,,3,GPT-4,10,-4,14,API log", "line 3: 'Response tokens'"),
        ("1,,3,GPT-4,10", "line 3: there are only 5 columns"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, what: str):
    with pytest.raises(CommandError, match=f"burst.csv, {what}"):
        items_of(*burst(tmp_path, "45,,3,GPT-4,10,4,14,API log", row))


def test_a_file_without_the_columns_is_refused(tmp_path: Path):
    with pytest.raises(CommandError, match="line 1: there is no column 'Model'"):
        items_of(*burst(tmp_path, "1,2", header="Timestamp,Request tokens"))


def test_a_traces_own_moments_bear_no_other_schedule():
    with pytest.raises(CommandError, match="random knows no moments"):
        options_of("--self-timed")
    for more in (["--request-rate", 5], ["--ramp-up-strategy", "linear"]):
        with pytest.raises(CommandError, match="--self-timed keeps"):
            options_of("--self-timed", "--dataset-name", "timed_trace", *more)
    assert options_of("--self-timed", "--dataset-name", "burstgpt", "--duration", 5).self_timed
