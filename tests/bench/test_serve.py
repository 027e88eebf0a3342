"""``vllm bench serve`` against a server whose delays are known.

A lower bound is strict: the server sleeps so long. An upper bound is generous: a busy machine may sleep longer.
"""

import json

import pytest

from tests.cli.mock_openai import MockOpenAI
from vllm_cli.main import main

FIRST_MS, NEXT_MS, TOKENS = 50, 10, 11
SLACK_MS = 200


def bench(server: MockOpenAI, tmp_path, *arguments: str) -> tuple[int, dict]:
    """Exit code and saved figures of one run."""
    saved = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    code = main(["bench", "serve", "--base-url", server.url, *saved, *arguments])
    return code, json.loads((tmp_path / "r.json").read_text())


@pytest.fixture
def timed_server(server: MockOpenAI) -> MockOpenAI:
    server.answer = lambda body: ["x"] * TOKENS
    server.first_token_seconds = FIRST_MS / 1e3
    server.next_token_seconds = NEXT_MS / 1e3
    return server


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_known_delays_are_reported(timed_server, tmp_path, backend):
    code, figures = bench(timed_server, tmp_path, "--num-prompts", "6", "--max-concurrency", "2", "--backend", backend)
    assert code == 0
    assert (figures["completed"], figures["failed"], figures["errors"]) == (6, 0, {})
    assert FIRST_MS <= figures["median_ttft_ms"] < FIRST_MS + SLACK_MS
    # A late first chunk shortens the gaps after it, so these have no strict lower bound.
    assert NEXT_MS / 2 <= figures["mean_itl_ms"] < NEXT_MS + SLACK_MS
    assert NEXT_MS / 2 <= figures["median_tpot_ms"] < NEXT_MS + SLACK_MS
    whole = FIRST_MS + (TOKENS - 1) * NEXT_MS
    assert whole <= figures["median_e2el_ms"] < whole + 5 * SLACK_MS
    assert figures["p90_e2el_ms"] <= figures["p99_e2el_ms"]


def test_throughput_is_the_servers_count_over_the_whole_duration(timed_server, tmp_path):
    _, figures = bench(timed_server, tmp_path, "--num-prompts", "4", "--max-concurrency", "4")
    assert figures["total_output_tokens"] == 4 * TOKENS
    assert figures["total_input_tokens"] == 4 * 7
    assert figures["tokens_counted_by"] == "usage"
    assert figures["output_throughput"] == pytest.approx(4 * TOKENS / figures["duration"])
    assert figures["total_token_throughput"] == pytest.approx(4 * (TOKENS + 7) / figures["duration"])
    assert figures["request_throughput"] == pytest.approx(4 / figures["duration"])
    assert figures["duration"] >= (FIRST_MS + (TOKENS - 1) * NEXT_MS) / 1e3


def test_clients_run_side_by_side_and_one_client_runs_in_turn(server, tmp_path):
    server.answer = lambda body: ["x"]
    server.first_token_seconds = 0.2
    _, together = bench(server, tmp_path, "--num-prompts", "6", "--max-concurrency", "6")
    _, in_turn = bench(server, tmp_path, "--num-prompts", "6", "--num-clients", "1")
    assert in_turn["duration"] >= 6 * 0.2
    assert together["duration"] < in_turn["duration"]


def test_a_duration_stops_new_requests_and_finishes_those_on_their_way(server, tmp_path):
    server.answer = lambda body: ["x"]
    server.first_token_seconds = 0.2
    _, figures = bench(server, tmp_path, "--duration", "0.5", "--max-concurrency", "2")
    assert figures["duration"] >= 0.5
    assert 2 <= figures["completed"] <= 6
    assert figures["completed"] == len(server.bodies)


def test_chunks_are_counted_when_the_server_reports_no_usage(timed_server, tmp_path, capsys):
    timed_server.report_usage = False
    _, figures = bench(timed_server, tmp_path, "--num-prompts", "2")
    assert figures["tokens_counted_by"] == "chunks"
    assert figures["total_output_tokens"] == 2 * TOKENS
    assert figures["total_input_tokens"] is None
    assert "reports no usage" in capsys.readouterr().out


def test_errors_are_counted_by_their_text_and_fail_the_run(server, tmp_path, capsys):
    def answer(body: dict) -> list[str]:
        if body["prompt"].startswith("1."):
            raise RuntimeError("a worker thread of the mock ends, and with it the connection")
        return ["x"]

    server.answer = answer
    code, figures = bench(server, tmp_path, "--num-prompts", "3")
    assert code == 1
    assert (figures["completed"], figures["failed"]) == (2, 1)
    [(error, count)] = figures["errors"].items()
    assert count == 1
    assert "Protocol" in error
    assert f"1 x {error}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"fail_after": 1}, "the engine stumbled"),
        ({"break_after": 1}, "Protocol"),
        ({"answer": lambda body: []}, "no text"),
    ],
)
def test_a_broken_answer_is_no_completed_request(server, tmp_path, fault, said):
    for name, value in fault.items():
        setattr(server, name, value)
    code, figures = bench(server, tmp_path, "--num-prompts", "1")
    assert (code, figures["completed"], figures["failed"]) == (1, 0, 1)
    assert said in next(iter(figures["errors"]))
    assert figures["mean_ttft_ms"] is None


def test_the_request_is_what_the_options_say(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\n\nsecond\n")
    options = ["--output-len", "5", "--ignore-eos", "--temperature", "0", "--model", "m", "--num-prompts", "3"]
    bench(server, tmp_path, "--prompt-file", str(prompts), *options)
    assert [body["prompt"] for body in server.bodies] == ["first", "second", "first"]
    assert server.bodies[0] == {
        "model": "m",
        "prompt": "first",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "ignore_eos": True,
        "temperature": 0.0,
    }
    assert server.headers_seen[-1]["Authorization"] == "Bearer key"


def test_warm_up_requests_are_not_measured_and_not_repeated(server, tmp_path):
    _, figures = bench(server, tmp_path, "--num-prompts", "2", "--num-warmups", "2")
    assert figures["completed"] == 2
    assert len({body["prompt"] for body in server.bodies}) == 4


def test_the_address_may_end_in_v1(server, tmp_path):
    server_url, saved = f"{server.url}/v1/", tmp_path / "r.json"
    options = ["--num-prompts", "1", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert main(["bench", "serve", "--base-url", server_url, *options]) == 0
    assert json.loads(saved.read_text())["model_id"] == "mock-model"


def test_an_absent_server_is_one_line(capsys):
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--num-prompts", "0"],
        ["--duration", "-1"],
        ["--duration", "inf"],
        ["--duration", "1", "--num-prompts", "1"],
        ["--metric-percentiles", "101"],
        ["--metric-percentiles", "x"],
        ["--num-warmups", "-1"],
        ["--max-concurrency", "none"],
    ],
)
def test_options_out_of_range_are_refused_by_name(capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_prompt_file_that_is_not_there_is_one_line(capsys):
    assert main(["bench", "serve", "--prompt-file", "/nowhere/prompts"]) == 2
    assert "--prompt-file" in capsys.readouterr().err


def test_the_table_shows_the_figures(timed_server, tmp_path, capsys):
    _, figures = bench(timed_server, tmp_path, "--num-prompts", "2", "--metric-percentiles", "50")
    out = capsys.readouterr().out
    assert "requests completed        2\n" in out
    assert f"{figures['p50_ttft_ms']:.2f}" in out
    assert "p50" in out
