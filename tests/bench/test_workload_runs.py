"""Workloads from the command line to the server: the bytes that a seed makes, moments, conversations, templates."""

import json
import time
from datetime import datetime
from pathlib import Path

import numpy
import pytest

from tests.bench.mock_server import Plan, Served, running
from tests.bench.test_file_datasets import talk, words
from tests.bench.workload_items import bodies_of
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_cli.main import main

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"
ATTEMPTS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a file for each dataset that needs one."""
    folder = tmp_path_factory.mktemp("files")
    talks = [talk(words(9, f"q{number}"), words(7), words(9, f"r{number}"), words(5)) for number in range(12)]
    (folder / "sharegpt").write_text(json.dumps(talks))
    (folder / "multi_turn").write_text(json.dumps(talks))
    (folder / "custom").write_text("".join(json.dumps({"prompt": f"line {number}"}) + "\n" for number in range(12)))
    lines = [
        {"timestamp": number / 50, "input_length": 40, "output_length": 3, "hash_ids": [0, number]}
        for number in range(12)
    ]
    (folder / "timed_trace").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [f"{number},GPT-4,{number + 5},{number + 2}" for number in range(12)]
    (folder / "burstgpt").write_text("\n".join(["Timestamp,Model,Request tokens,Response tokens", *rows]))
    return folder


DATASETS = {
    "random": ["--random-range-ratio", "0.5", "--random-prefix-len", "20", "--random-input-len", "50"],
    "prefix_repetition": [],
    "sharegpt": [],
    "custom": [],
    "timed_trace": [],
    "burstgpt": [],
    "multi_turn": ["--backend", "openai-chat"],
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_seed_makes_the_same_bytes_and_another_one_others(files: Path, name: str):
    text = TokenizerText(DEMO)
    options = ["--dataset-name", name, "--num-prompts", 12, *DATASETS[name]]
    if (files / name).exists():
        options += ["--dataset-path", files / name]
    bodies = bodies_of(*options, "--seed", 7, text=text)
    assert len(bodies) == (24 if name == "multi_turn" else 12)
    # Whatever the rate is, and however the text source was made.
    assert bodies_of(*options, "--seed", 7, "--request-rate", 3, text=TokenizerText(DEMO)) == bodies
    assert bodies_of(*options, "--seed", 8, text=text) != bodies


def late(log: list[Served], moments: list[float]) -> float:
    """Seconds by which the worst request missed its moment; the begin is where that is least."""
    errors = numpy.array([served.arrived for served in log]) - moments
    return float(errors.max() - errors.min()) / 2


def test_each_request_names_an_adapter_and_a_conversation_keeps_its_own(files: Path):
    names = ["a", "b", "c"]
    options = ["--num-prompts", 40, "--input-len", 4, "--lora-modules", *names]
    in_turn = bodies_of(*options, "--lora-assignment", "round-robin")
    assert [json.loads(body)["model"] for body in in_turn] == [names[number % 3] for number in range(40)]
    drawn = [json.loads(body)["model"] for body in bodies_of(*options)]
    assert set(drawn) == set(names) and drawn != sorted(drawn)
    assert drawn == [json.loads(body)["model"] for body in bodies_of(*options)]
    # The prompts are those of a run without adapters.
    plain = [json.loads(body)["prompt"] for body in bodies_of(*options[:4])]
    assert [json.loads(body)["prompt"] for body in in_turn] == plain
    talks = ["--dataset-name", "multi_turn", "--dataset-path", files / "multi_turn", "--backend", "openai-chat"]
    bodies = [json.loads(body) for body in bodies_of(*talks, "--num-prompts", 12, "--lora-modules", *names)]
    of_talk: dict[str, set[str]] = {}
    for body in bodies:
        of_talk.setdefault(str(body["messages"][0]), set()).add(body["model"])
    assert len(bodies) == 24 and all(len(models) == 1 for models in of_talk.values())


def test_an_assignment_without_adapters_is_refused(capsys):
    assert main(["bench", "serve", "--lora-assignment", "round-robin"]) == 2
    assert "--lora-assignment needs --lora-modules" in capsys.readouterr().err


def test_the_server_sees_the_moments_of_a_trace(files: Path):
    options = ["--dataset-name", "timed_trace", "--dataset-path", str(files / "timed_trace"), "--self-timed"]
    worst = []
    with running([Plan(0.01)]) as server:
        for attempt in range(ATTEMPTS):
            assert main(["bench", "serve", "--base-url", server.url, *options]) == 0
            log = server.log()[12 * attempt :]
            assert [served.body["max_tokens"] for served in log] == [3] * 12
            worst.append(late(log, [number / 50 for number in range(12)]))
            if worst[-1] < 0.005:
                break
    assert min(worst) < 0.02  # late by less than from one to the next, also on a busy machine


def test_the_result_tells_how_the_rate_grew(files: Path, tmp_path: Path):
    options = ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "20", "--ramp-up-end-rps", "100"]
    options += ["--burstiness", "inf", "--num-prompts", "48", "--input-len", "4", "--output-len", "1"]
    options += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    begin = time.time()
    with running([Plan()]) as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 0
        arrived = numpy.array([served.arrived for served in server.log()])
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["ramp_up_strategy"] == "linear"
    assert (result["ramp_up_start_rps"], result["ramp_up_end_rps"]) == (20, 100)
    # 48 requests at 60 a second on average: 0.8 s, in whose halves are 16 and 32 of them.
    assert arrived[-1] - arrived[0] == pytest.approx(0.8, abs=0.3)
    assert (arrived < arrived[-1] - 0.4).sum() == pytest.approx(16, abs=4)
    events = result["rps_change_events"]
    assert [event["rps"] for event in events] == [20, *range(21, 101)]
    moments = [datetime.fromisoformat(event["timestamp"]).timestamp() for event in events]
    assert numpy.diff(moments) == pytest.approx(numpy.full(80, 0.01), abs=1e-4)
    assert begin < moments[0] < moments[-1] < time.time()


def test_a_turn_holds_the_servers_answer_before_and_comes_after_the_time_to_think(files: Path):
    options = ["--dataset-name", "multi_turn", "--dataset-path", str(files / "multi_turn"), "--backend", "openai-chat"]
    options += ["--num-prompts", "3", "--max-concurrency", "2", "--multi-turn-delay-ms", "60", "--disable-shuffle"]
    with running([Plan(num_tokens=2), Plan(num_tokens=3)]) as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 0
        log = server.log()
    assert len(log) == 6
    for number in range(3):
        first, second = (served for served in log if served.body["messages"][0]["content"] == words(9, f"q{number}"))
        asked, answer, then = second.body["messages"]
        assert [asked] == first.body["messages"]
        assert answer == {"role": "assistant", "content": " tok" * sum(first.tokens)}
        assert then == {"role": "user", "content": words(9, f"r{number}")}
        assert 0.06 <= second.arrived - first.ended < 0.5


def test_a_conversation_needs_an_api_of_conversations(files: Path, capsys):
    options = ["--dataset-name", "multi_turn", "--dataset-path", str(files / "multi_turn")]
    with running([Plan()]) as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 2
        assert server.log() == []
    assert "--backend openai-chat" in capsys.readouterr().err


def test_custom_prompts_go_through_the_servers_chat_template(files: Path, capsys):
    options = ["--dataset-name", "custom", "--dataset-path", str(files / "custom"), "--num-prompts", "2"]
    options += ["--disable-shuffle", "--custom-output-len", "4", "--max-concurrency", "1"]
    with running([Plan()]) as server:
        url = ["--base-url", server.url]
        assert main(["bench", "serve", *url, *options]) == 0
        assert main(["bench", "serve", *url, *options, "--skip-chat-template"]) == 0
        assert main(["bench", "serve", *url, *options, "--backend", "openai-chat"]) == 0
        log = server.log()
    assert [served.body["prompt"] for served in log[:4]] == [[0, 1], [0, 1], "line 0", "line 1"]
    assert [served.body["messages"] for served in log[4:]] == [
        [{"role": "user", "content": f"line {number}"}] for number in range(2)
    ]
    with running([Plan()], "--no-tokenize") as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 2
    assert "--skip-chat-template" in capsys.readouterr().err


def test_a_bad_line_is_one_line_with_its_place(files: Path, tmp_path: Path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": 1}\n')
    with running([Plan()]) as server:
        for file in (path, tmp_path / "absent"):
            options = ["--dataset-name", "custom", "--dataset-path", str(file)]
            assert main(["bench", "serve", "--base-url", server.url, *options]) == 2
        assert server.log() == []
    bad, absent = capsys.readouterr().err.splitlines()
    assert f"{path}, line 2: 'prompt'" in bad
    assert str(tmp_path / "absent") in absent
