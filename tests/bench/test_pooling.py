"""Runs whose answers are vectors or scores."""

import json
from pathlib import Path

import pytest

from tests.bench.mock_server import MockServer, Plan, running
from vllm_bench.load.run import LoadRun
from vllm_bench.measure.pooling import pooling_figures
from vllm_bench.records import RequestRecord
from vllm_cli.main import main


def bench(server: MockServer, folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and saved result."""
    saved = ["--save-result", "--result-dir", str(folder), "--result-filename", "r.json"]
    code = main(["bench", "serve", "--base-url", server.url, *saved, *arguments])
    return code, json.loads((folder / "r.json").read_text())


def test_figures_are_those_of_what_went_in():
    records = [
        RequestRecord(0.0, 0.0, 6, num_inputs=3, ended=1.0, prompt_tokens=9),
        RequestRecord(0.0, 0.0, 4, num_inputs=2, ended=2.0, prompt_tokens=6),
        RequestRecord(0.0, 0.0, 4, num_inputs=2, ended=1.0, error="no"),
    ]
    figures = pooling_figures(LoadRun(records, began=0.0, ended=2.0), [50])
    assert (figures["completed"], figures["failed"], figures["error_counts"]) == (2, 1, {"no": 1})
    assert (figures["total_input_tokens"], figures["total_input_sequences"]) == (15, 5)
    assert (figures["request_throughput"], figures["input_sequence_throughput"]) == (1.0, 2.5)
    assert figures["total_token_throughput"] == 7.5
    assert figures["mean_e2el_ms"] == figures["p50_e2el_ms"] == 1500.0
    assert (figures["prompt_tokens_added"], figures["prompt_token_mismatches"]) == (1, 0)


@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("openai-embeddings", "/v1/embeddings"),
        ("openai-embeddings-chat", "/v1/embeddings"),
        ("infinity-embeddings", "/embeddings"),
        ("vllm-pooling", "/pooling"),
    ],
)
def test_embeddings_have_the_documented_keys_and_no_others_of_text(tmp_path, capsys, backend: str, path: str):
    with running([Plan(0.01)]) as server:
        options = ["--backend", backend, "--num-prompts", "3", "--input-len", "5"]
        code, result = bench(server, tmp_path, *options)
        log = server.log()
    assert code == 0
    assert [served.path for served in log] == [path] * 3
    assert {*log[0].body} == {"model", "messages" if backend.endswith("chat") else "input"}
    documented = {"duration", "completed", "total_input_tokens", "total_input_sequences", "request_throughput"}
    documented |= {"input_sequence_throughput", "total_token_throughput", "mean_e2el_ms", "median_e2el_ms"}
    assert documented | {"std_e2el_ms", "p99_e2el_ms", "date", "backend", "model_id"} <= {*result}
    assert not [key for key in result if any(word in key for word in ("ttft", "tpot", "itl", "output_throughput"))]
    assert result["total_input_sequences"] == 3
    out = capsys.readouterr().out
    assert "sequence throughput" in out
    assert "(e2el)" in out


def test_a_request_may_have_several_texts_and_the_prompts_are_counted(tmp_path):
    with running([Plan()]) as server:
        options = ["--backend", "openai-embeddings", "--input-len", "5", "--random-batch-size", "4"]
        options += ["--max-concurrency", "1"]  # so that they arrive in their order
        _, result = bench(server, tmp_path, *options, "--num-prompts", "10", "--num-warmups", "1")
        log = server.log()
    assert [len(served.body["input"]) for served in log] == [4, 4, 4, 2]
    texts = [text for served in log for text in served.body["input"]]
    assert {len(text.split()) for text in texts} == {5}
    assert len({*texts}) == 14
    assert (result["completed"], result["total_input_sequences"], result["total_input_tokens"]) == (3, 10, 50)
    assert result["prompt_token_mismatches"] == 0


def test_a_reranker_reads_the_query_with_each_document(tmp_path):
    with running([Plan()]) as server:
        options = ["--backend", "vllm-rerank", "--dataset-name", "random-rerank", "--random-batch-size", "3"]
        _, result = bench(server, tmp_path, *options, "--num-prompts", "6", "--random-input-len", "9")
        log = server.log()
    for served in log:
        assert served.path == "/v1/rerank"
        assert len(served.body["query"].split()) == 4
        assert [len(text.split()) for text in served.body["documents"]] == [5, 5, 5]
    assert (result["completed"], result["total_input_sequences"], result["total_input_tokens"]) == (2, 6, 54)
    assert (result["prompt_tokens_added"], result["prompt_token_mismatches"]) == (0, 0)


def test_a_model_of_vectors_reads_the_query_once(tmp_path):
    with running([Plan(usage=False)]) as server:
        options = ["--backend", "vllm-rerank", "--dataset-name", "random-rerank", "--random-batch-size", "3"]
        options += ["--no-reranker", "--num-prompts", "6", "--random-input-len", "9"]
        _, result = bench(server, tmp_path, *options)
        log = server.log()
    assert [len(served.body["documents"]) for served in log] == [2, 2]
    assert {len(text.split()) for served in log for text in [served.body["query"], *served.body["documents"]]} == {9}
    assert (result["total_input_sequences"], result["total_input_tokens"]) == (6, 54)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--backend", "openai-embeddings", "--temperature", "0"], "--temperature"),
        (["--backend", "openai-embeddings", "--ignore-eos"], "--ignore-eos"),
        (["--backend", "openai-embeddings", "--percentile-metrics", "ttft"], "--percentile-metrics"),
        (["--backend", "vllm-pooling", "--chat-template-kwargs", '{"a": 1}'], "--chat-template-kwargs"),
        (["--random-batch-size", "2"], "--random-batch-size"),
        (["--chat-template-kwargs", '{"a": 1}'], "--chat-template-kwargs"),
        (["--skip-tokenizer-init", "--tokenizer", "x"], "--skip-tokenizer-init"),
    ],
)
def test_options_without_a_meaning_are_refused_by_name(capsys, options: list[str], named: str):
    assert main(["bench", "serve", *options]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset-name", "random-rerank"], "several texts"),
        (["--backend", "vllm-rerank"], "--dataset-name random-rerank"),
        (["--backend", "vllm-rerank", "--dataset-name", "random-rerank", "--no-reranker"], "--random-batch-size"),
        (["--backend", "vllm-rerank", "--dataset-name", "random-rerank", "--input-len", "1"], "--random-input-len"),
        (["--backend", "openai-embeddings-chat", "--random-batch-size", "2"], "several texts"),
    ],
)
def test_a_workload_that_an_api_cannot_carry_is_refused(capsys, options: list[str], said: str):
    with running([Plan()]) as server:
        assert main(["bench", "serve", "--base-url", server.url, *options]) == 2
        assert server.log() == []
    assert said in capsys.readouterr().err
