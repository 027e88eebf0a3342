"""``vllm bench serve`` from its command line to its result; ``test_calibration.py`` holds the times to account."""

import json
from pathlib import Path

import pytest

from tests.bench.mock_server import MockServer, Plan, running
from vllm_cli.main import main

TOKENS = 11
SHORT = ["--input-len", "8", "--output-len", str(TOKENS)]


def bench(server: MockServer, folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and saved result of one run."""
    saved = ["--save-result", "--result-dir", str(folder), "--result-filename", "r.json"]
    code = main(["bench", "serve", "--base-url", server.url, *SHORT, *saved, *arguments])
    return code, json.loads((folder / "r.json").read_text())


def test_the_result_has_the_documented_keys(tmp_path):
    with running([Plan(0.01, 0.001)]) as server:
        options = ["--num-prompts", "6", "--max-concurrency", "2", "--label", "mine", "--seed", "3"]
        code, result = bench(server, tmp_path, *options)
    assert code == 0
    header = {
        "endpoint_type": "openai",
        "backend": "openai",
        "label": "mine",
        "model_id": "mock",
        "tokenizer_id": "words, counted by the server",
        "num_prompts": 6,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 2,
        "seed": 3,
    }
    assert {key: result[key] for key in header} == header
    assert (result["completed"], result["failed"], result["error_counts"]) == (6, 0, {})
    assert result["max_concurrent_requests"] == 2
    for stem in ("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"):
        for figure in ("mean", "median", "std", "p99"):
            assert result[f"{figure}_{stem}_ms"] >= 0
    assert result["date"]


def test_throughput_is_the_servers_count_over_the_whole_duration(tmp_path):
    with running([Plan(0.05, 0.01)]) as server:
        _, result = bench(server, tmp_path, "--num-prompts", "4", "--max-concurrency", "4")
    assert result["total_output_tokens"] == 4 * TOKENS
    assert result["total_input_tokens"] == 4 * 8
    assert result["tokens_counted_by"] == "usage"
    assert (result["prompt_tokens_added"], result["prompt_token_mismatches"]) == (0, 0)
    assert result["output_throughput"] == pytest.approx(4 * TOKENS / result["duration"])
    assert result["total_token_throughput"] == pytest.approx(4 * (TOKENS + 8) / result["duration"])
    assert result["request_throughput"] == pytest.approx(4 / result["duration"])
    assert result["max_output_tokens_per_s"] == 4 * TOKENS
    assert result["duration"] >= 0.15


def test_clients_run_side_by_side_and_one_client_runs_in_turn(tmp_path):
    with running([Plan(0.1)]) as server:
        _, together = bench(server, tmp_path, "--num-prompts", "6")
        _, in_turn = bench(server, tmp_path, "--num-prompts", "6", "--num-clients", "1")
    assert (together["max_concurrent_requests"], in_turn["max_concurrent_requests"]) == (6, 1)
    assert in_turn["duration"] >= 6 * 0.1
    assert together["duration"] < in_turn["duration"]


def test_a_rate_is_kept_whatever_the_server_does(tmp_path):
    with running([Plan(0.3)]) as server:
        _, result = bench(server, tmp_path, "--num-prompts", "20", "--request-rate", "40")
        arrived = [served.arrived for served in server.log()]
    # Without schedule, or one after the other, they would take 0.3 or 6 s.
    assert 0.6 < result["duration"] < 1.5
    assert 0.3 < arrived[-1] - arrived[0] < 1.2
    assert result["max_concurrent_requests"] > 5
    assert "mean_client_queue_time_ms" not in result


def test_a_duration_stops_new_requests_and_finishes_those_on_their_way(tmp_path):
    with running([Plan(0.2)]) as server:
        _, result = bench(server, tmp_path, "--duration", "0.5", "--max-concurrency", "2")
        log = server.log()
    assert result["duration"] >= 0.5
    assert 2 <= result["completed"] <= 6
    assert result["completed"] == result["num_prompts"] == len(log)
    assert not any(served.gone for served in log)


def test_chunks_are_counted_when_the_server_reports_no_usage(tmp_path, capsys):
    with running([Plan(usage=False)], "--no-tokenize") as server:
        _, result = bench(server, tmp_path, "--num-prompts", "2")
    assert result["tokens_counted_by"] == "chunks"
    assert result["total_output_tokens"] == 2 * TOKENS
    assert result["total_input_tokens"] is None
    assert result["tokenizer_id"] == "words, not counted"
    out = capsys.readouterr().out
    assert "reports no usage" in out
    assert "a word for each wanted token" in out


def test_errors_are_counted_by_their_text_and_fail_the_run(tmp_path, capsys):
    with running([Plan(), Plan(status=429), Plan(status=503)]) as server:
        code, result = bench(server, tmp_path, "--num-prompts", "9")
    assert code == 1
    assert (result["completed"], result["failed"]) == (3, 6)
    assert result["error_counts"] == {"status 429: refused with 429": 3, "status 503: refused with 503": 3}
    assert "3 x status 429: refused with 429" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(next_token_s=0.001, error_after=1), "the engine stumbled"),
        (Plan(next_token_s=0.001, break_after=1), "broke in the middle"),
        (Plan(num_tokens=0), "no text"),
    ],
)
def test_a_broken_answer_is_no_completed_request(tmp_path, plan, said):
    with running([plan]) as server:
        code, result = bench(server, tmp_path, "--num-prompts", "1")
    assert (code, result["completed"], result["failed"]) == (1, 0, 1)
    assert said in next(iter(result["error_counts"]))
    assert result["mean_ttft_ms"] is None


def test_the_request_is_what_the_options_say(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\n\nsecond\n")
    options = ["--output-len", "5", "--ignore-eos", "--temperature", "0", "--model", "m", "--num-prompts", "3"]
    options += ["--prompt-file", str(prompts), "--extra-body", '{"stop": ["x"]}', "--max-concurrency", "1"]
    with running([Plan()]) as server:
        bench(server, tmp_path, *options)
        log = server.log()
    assert [served.body["prompt"] for served in log] == ["first", "second", "first"]
    assert log[0].body == {
        "model": "m",
        "prompt": "first",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "ignore_eos": True,
        "temperature": 0.0,
        "stop": ["x"],
    }
    assert log[-1].headers["authorization"] == "Bearer key"


def test_a_name_in_requests_may_be_another_than_the_models(tmp_path):
    with running([Plan()]) as server:
        _, result = bench(server, tmp_path, "--num-prompts", "1", "--model", "big", "--served-model-name", "alias")
        assert server.log()[0].body["model"] == "alias"
    assert result["model_id"] == "big"


def test_warm_up_requests_are_not_measured_and_leave_the_workload_as_it_is(tmp_path):
    with running([Plan()]) as server:
        options = ["--num-prompts", "2", "--max-concurrency", "1"]
        bench(server, tmp_path, *options)
        _, result = bench(server, tmp_path, *options, "--num-warmups", "2")
        prompts = [served.body["prompt"] for served in server.log()]
    assert result["completed"] == 2
    assert prompts[:2] == prompts[4:]
    assert len({*prompts}) == 4
    assert {len(prompt.split()) for prompt in prompts} == {8}


def test_the_address_may_end_in_v1_and_the_path_be_another(tmp_path):
    with running([Plan()]) as server:
        options = ["--base-url", f"{server.url}/v1/", "--num-prompts", "1", "--endpoint", "/v1/chat/completions"]
        assert main(["bench", "serve", *SHORT, "--backend", "openai-chat", *options]) == 0
        host, port = server.url.removeprefix("http://").split(":")
        assert main(["bench", "serve", *SHORT, "--host", host, "--port", port, "--num-prompts", "1"]) == 0
        assert [served.path for served in server.log()] == ["/v1/chat/completions", "/v1/completions"]


def test_prompts_longer_than_the_model_takes_are_refused_before_they_are_sent(capsys):
    with running([Plan()], "--max-model-len", "20") as server:
        assert main(["bench", "serve", "--base-url", server.url]) == 2
        assert server.log() == []
    assert "do not fit into the 20 of mock" in capsys.readouterr().err


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
        ["--percentile-metrics", "ttft,x"],
        ["--num-warmups", "-1"],
        ["--max-concurrency", "none"],
        ["--request-rate", "0"],
        ["--burstiness", "-1"],
        ["--seed", "-1"],
        ["--extra-body", "[1]"],
    ],
)
def test_options_out_of_range_are_refused_by_name(capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_duration_without_anything_that_holds_back_is_refused(capsys):
    assert main(["bench", "serve", "--duration", "1"]) == 2
    assert "--request-rate or --max-concurrency" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--prompt-file", "/nowhere/prompts"], ["--dataset-name", "prompt-file"], ["--tokenizer", "/nowhere"]]
)
def test_a_file_that_is_not_there_is_one_line(capsys, options):
    with running([Plan()]) as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_the_table_shows_the_figures(tmp_path, capsys):
    with running([Plan(0.01, 0.001)]) as server:
        options = ["--num-prompts", "2", "--metric-percentiles", "50", "--percentile-metrics", "ttft,e2el"]
        _, result = bench(server, tmp_path, *options)
    out = capsys.readouterr().out
    assert "requests completed        2\n" in out
    assert f"{result['p50_ttft_ms']:.2f}" in out
    assert "(e2el)" in out
    assert "(itl)" not in out
    assert "p50" in out


def test_the_files_name_is_made_of_load_and_model(tmp_path):
    with running([Plan()]) as server:
        options = ["--num-prompts", "1", "--max-concurrency", "3", "--model", "a/b"]
        main(
            [
                "bench",
                "serve",
                "--base-url",
                server.url,
                *SHORT,
                *options,
                "--save-result",
                "--result-dir",
                str(tmp_path),
            ]
        )
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("openai-infqps-concurrency3-a-b-2")
