"""What the options make of a request, as the server receives it."""

import json
from pathlib import Path

import pytest

from tests.bench.mock_server import MockServer, Plan, running
from vllm_cli.main import main

SHORT = ["--input-len", "4", "--output-len", "6", "--num-prompts", "3", "--max-concurrency", "1"]


def bench(server: MockServer, folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and saved result."""
    saved = ["--save-result", "--result-dir", str(folder), "--result-filename", "r.json"]
    code = main(["bench", "serve", "--base-url", server.url, *SHORT, *saved, *arguments])
    return code, json.loads((folder / "r.json").read_text())


def test_headers_are_sent_with_every_request_and_win_over_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    headers = ["--header", "X-Team=a=b", "authorization=Basic x", "--header", "User-Agent=mine"]
    with running([Plan()]) as server:
        bench(server, tmp_path, *headers, "--request-id-prefix", "run-")
        log = server.log()
    for served in log:
        assert served.headers["x-team"] == "a=b"
        assert served.headers["authorization"] == "Basic x"
        assert served.headers["user-agent"] == "mine"
    assert [served.headers["x-request-id"] for served in log] == ["run-0", "run-1", "run-2"]


@pytest.mark.parametrize("header", ["X-Team", "=x"])
def test_a_header_without_a_name_is_refused(capsys, header: str):
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", "--header", header])
    assert end.value.code == 2
    assert "KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["X Team=x", "X-Team=\n", "X-Team=\N{SNOWMAN}"])
def test_a_header_that_cannot_be_sent_is_refused_before_the_server_is_asked(capsys, header: str):
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", "--header", header]) == 2
    assert "header" in capsys.readouterr().err


def test_options_of_sampling_are_fields_of_the_body(tmp_path):
    options = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "5", "--min-p", "0.1", "--frequency-penalty", "0.2"]
    options += ["--presence-penalty", "0.3", "--repetition-penalty", "1.1", "--use-beam-search", "--logprobs", "2"]
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.2}
    fields |= {"presence_penalty": 0.3, "repetition_penalty": 1.1, "use_beam_search": True, "logprobs": 2}
    with running([Plan()]) as server:
        bench(server, tmp_path, *options)
        chat = ["--backend", "openai-chat", "--chat-template-kwargs", '{"enable_thinking": false}', "--logprobs", "2"]
        bench(server, tmp_path, *chat)
        log = server.log()
    assert {name: log[0].body.get(name) for name in fields} == fields
    assert log[-1].body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (log[-1].body["logprobs"], log[-1].body["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "openai-responses"])
def test_whole_answers_have_a_latency_and_nothing_else_that_takes_time(tmp_path, capsys, backend: str):
    with running([Plan(0.02, 0.01)]) as server:
        code, result = bench(server, tmp_path, "--backend", backend, "--whole-answers")
        log = server.log()
    assert code == 0
    assert all(served.body["stream"] is False and "stream_options" not in served.body for served in log)
    assert result["mean_ttft_ms"] is result["mean_tpot_ms"] is None
    assert result["mean_e2el_ms"] >= 20 + 5 * 10
    assert (result["total_output_tokens"], result["tokens_counted_by"]) == (3 * 6, "usage")
    assert result["max_output_tokens_per_s"] == 3 * 6
    out = capsys.readouterr().out
    assert "(e2el)" in out
    assert "(ttft)" not in out


def test_without_a_tokenizer_nobody_is_asked_to_count(tmp_path):
    with running([Plan()]) as server:
        _, result = bench(server, tmp_path, "--skip-tokenizer-init")
    assert result["tokenizer_id"] == "words, not counted"
