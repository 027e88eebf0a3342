"""Conversations: each turn holds all that was said, with the server's own answers."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.bench.test_file_datasets import talk, words
from tests.bench.virtual_time import run
from tests.bench.workload_items import items_of
from vllm_bench.load.run import run_load
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, WorkItem
from vllm_cli.command import CommandError


def multi_turn(folder: Path, *conversations: dict) -> list[object]:
    path = folder / "talks.json"
    path.write_text(json.dumps(conversations))
    options = ["--dataset-name", "multi_turn", "--dataset-path", path, "--backend", "openai-chat"]
    return [*options, "--disable-shuffle", "--num-prompts", len(conversations)]


def played(item: WorkItem | None) -> list[WorkItem]:
    """All turns of a conversation whose answers are numbered."""
    turns = []
    while item is not None:
        turns.append(item)
        item = item.follow_up(f"answer {len(turns)}") if item.follow_up is not None else None
    return turns


def test_a_turn_holds_the_questions_of_the_file_and_the_answers_of_the_server(tmp_path):
    conversation = talk("one", words(3), "two", words(5), "three", words(7))
    conversation["conversations"].insert(0, {"from": "system", "value": "be kind"})
    (item,) = items_of(*multi_turn(tmp_path, conversation), "--multi-turn-delay-ms", 250)
    turns = played(item)
    kind = {"role": "system", "content": "be kind"}
    said = [{"role": "user", "content": text} for text in ("one", "two", "three")]
    answers = [{"role": "assistant", "content": f"answer {number}"} for number in (1, 2)]
    assert [turn.prompt for turn in turns] == [
        Messages([kind, said[0]]),
        Messages([kind, said[0], answers[0], said[1]]),
        Messages([kind, said[0], answers[0], said[1], answers[1], said[2]]),
    ]
    assert [turn.output_len for turn in turns] == [3, 5, 7]
    assert [turn.offset for turn in turns] == [None, 0.25, 0.25]
    assert played(item)[2].prompt == turns[2].prompt  # it can be played again


def test_conversations_end_at_the_wanted_length(tmp_path):
    long = talk(*(words(10) for _ in range(12)))
    options = multi_turn(tmp_path, long)
    assert len(played(items_of(*options)[0])) == 6
    assert len(played(items_of(*options, "--multi-turn-max-turns", 2)[0])) == 2
    assert [turn.output_len for turn in played(items_of(*options, "--output-len", 4)[0])] == [4] * 6
    # Ten words and ten of an answer, each with a frame of eight, are 36 a turn.
    assert len(played(items_of(*options, "--multi-turn-max-tokens", 3 * 36)[0])) == 3
    assert len(played(items_of(*options, "--multi-turn-max-tokens", 3 * 36 - 1)[0])) == 2
    with pytest.raises(CommandError, match="holds nothing"):
        items_of(*options, "--multi-turn-max-tokens", 35)


def test_questions_without_an_answer_are_passed_over(tmp_path):
    odd = {"conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "one"}]}
    odd["conversations"] += [{"from": "gpt", "value": "yes"}, {"from": "human", "value": "last"}]
    items = items_of(*multi_turn(tmp_path, odd, talk("lonely")), "--no-oversample")
    assert [item.prompt for item in items] == [Messages([{"role": "user", "content": "one"}])]
    assert items[0].follow_up is None


def test_a_duration_ends_conversations_too():
    async def send(item: WorkItem, record: RequestRecord) -> None:
        record.sent = time.perf_counter()
        await asyncio.sleep(0.02)
        record.ended = time.perf_counter()
        record.add_chunk(record.ended, "x")

    def again(answer: str) -> WorkItem:
        return WorkItem("more", offset=0.02, follow_up=again)

    endless = (WorkItem("first", follow_up=again) for _ in iter(int, 1))
    load = run(run_load(send, endless, max_concurrency=2, seconds=0.3))
    assert len(load.records) == 16
    assert load.seconds == pytest.approx(0.3, abs=0.001)
    assert max(record.arrival for record in load.records) < load.began + 0.3
