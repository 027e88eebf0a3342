"""``vllm bench latency`` and ``throughput`` on the demo model, from the command line to the result."""

import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from tests.cli.conftest import logging_as_it_was
from vllm_cli.main import main
from vllm_engine.llm import LLM

__all__ = ["logging_as_it_was"]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

LATENCY = ["--input-len", "16", "--output-len", "8", "--num-iters-warmup", "1", "--num-iters", "3"]
THROUGHPUT = ["--num-prompts", "12", "--input-len", "16", "--output-len", "8"]


def bench(folder: Path, *arguments: str) -> dict:
    """The saved result of a run that succeeds."""
    saved = folder / "result.json"
    assert main(["bench", *arguments, "--output-json", str(saved)]) == 0
    return json.loads(saved.read_text())


@pytest.fixture
def calls(monkeypatch):
    """What is asked of ``LLM.generate``: pairs of prompts and parameters."""
    seen = []
    generate = LLM.generate

    def recording(self, prompts, sampling_params=None, **options):
        seen.append((prompts, sampling_params))
        return generate(self, prompts, sampling_params, **options)

    monkeypatch.setattr(LLM, "generate", recording)
    return seen


@pytest.fixture
def engines(monkeypatch):
    """The configuration of every ``LLM`` that is made."""
    seen = []
    create = LLM._create_client

    def recording(self, path):
        seen.append(self.config)
        return create(self, path)

    monkeypatch.setattr(LLM, "_create_client", recording)
    return seen


def test_latency_has_the_documented_keys_and_times_of_whole_batches(tmp_path, calls, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    began = time.perf_counter()
    result = bench(tmp_path, "latency", "demo", *LATENCY, "--batch-size", "3", "--n", "2", "--disable-detokenize")
    wall = time.perf_counter() - began
    assert result["model_id"] == "demo"
    assert len(result["latencies"]) == 3
    assert sum(result["latencies"]) < wall
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 3)
    assert list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert result["percentiles"]["50"] == pytest.approx(sorted(result["latencies"])[1])
    assert f"average latency           {result['avg_latency']:.4f} s" in capsys.readouterr().out
    assert len(calls) == 1 + 3
    prompts, params = calls[0]
    assert [len(prompt) for prompt in prompts] == [16] * 3
    assert (params.n, params.max_tokens, params.ignore_eos, params.detokenize) == (2, 8, True, False)
    assert all(call == calls[0] for call in calls)
    told = result["fingerprint"]
    assert (told["flags"]["batch_size"], told["flags"]["num_iters"], told["seed"]) == (3, 3, result["seed"])
    assert told["versions"]["vllm_engine"] and told["versions"]["torch"] == metadata.version("torch")
    assert told["machine"]["cpu"]
    assert told["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert not {"model", "config", "api_key"} & set(told["flags"])


def test_the_flags_of_the_engine_reach_it_from_the_command_line_and_a_file(tmp_path, engines):
    settings = tmp_path / "engine.yaml"
    settings.write_text("max-num-seqs: 5\nmax-model-len: 128\n")
    bench(
        tmp_path, "latency", "demo", *LATENCY, "--config", str(settings), "--max-model-len", "64", "--block-size", "32"
    )
    (config,) = engines
    assert (config.scheduler.max_num_seqs, config.model.max_model_len, config.cache.block_size) == (5, 64, 32)
    # Else the same prompts again would cost nothing from the second iteration on.
    assert config.cache.enable_prefix_caching is False
    bench(tmp_path, "latency", "demo", *LATENCY, "--enable-prefix-caching")
    assert engines[1].cache.enable_prefix_caching is True


@pytest.mark.parametrize("benchmark", ["latency", "throughput"])
def test_what_does_not_fit_is_refused_before_anything_is_loaded(capsys, engines, benchmark):
    command = ["bench", benchmark, "demo", "--input-len", "60", "--output-len", "8", "--max-model-len", "64"]
    assert main(command) == 2
    assert "60 tokens and an answer of 8 do not fit into --max-model-len 64" in capsys.readouterr().err
    assert engines == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["latency", "--use-beam-search"], "no beam search"),
        (["latency", "--profile"], "--profile: a benchmark is not profiled"),
        (["throughput", "--profile"], "--profile: a benchmark is not profiled"),
        (["throughput", "--backend", "hf"], "--backend hf: it would measure transformers"),
        (["throughput", "--backend", "mii"], "--backend mii: DeepSpeed-MII is another engine"),
        (["throughput", "--async-engine", "--backend", "vllm-chat"], "--async-engine takes prompts"),
        (["throughput", "--async-engine", "--prequeue-requests"], "come one by one"),
        (["throughput", "demo", "--dataset-path", "/nowhere.json"], "/nowhere.json"),
        (["throughput", "demo", "--skip-tokenizer-init"], "--skip-tokenizer-init leaves out"),
        (["latency", "demo", "--max-num-seqs", "0"], "--max-num-seqs"),
        (["latency", "demo", "--tensor-parallel-size", "2"], "--tensor-parallel-size"),
        (["latency", "./nowhere"], "./nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_one_line_with_its_reason(capsys, engines, command, said):
    assert main(["bench", *command]) == 2
    assert said in capsys.readouterr().err
    assert engines == []


def test_throughput_has_the_documented_keys_and_counts_what_was_generated(tmp_path, calls, capsys):
    result = bench(tmp_path, "throughput", "demo", *THROUGHPUT, "--num-warmups", "2", "--n", "2", "--seed", "5")
    assert (result["model_id"], result["num_requests"]) == ("demo", 12)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (12 * 16, 12 * 2 * 8)
    assert result["total_num_tokens"] == 12 * 16 + 12 * 2 * 8
    seconds = result["elapsed_time"]
    assert result["requests_per_second"] == pytest.approx(12 / seconds)
    assert result["tokens_per_second"] == pytest.approx(result["total_num_tokens"] / seconds)
    assert "prompt tokens             192" in capsys.readouterr().out
    (warm_ups, _), (prompts, params) = calls
    assert (len(warm_ups), len({*warm_ups, *prompts})) == (2, 14)
    assert [param.max_tokens for param in params] == [8] * 12
    bench(tmp_path, "throughput", "demo", *THROUGHPUT, "--seed", "5")
    assert calls[-1][0] == prompts


def test_the_engine_of_the_server_gives_the_same_counts(tmp_path):
    result = bench(tmp_path, "throughput", "demo", *THROUGHPUT, "--async-engine", "--n", "2", "--num-warmups", "1")
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (12 * 16, 12 * 2 * 8)


def test_conversations_go_through_the_chat_template(tmp_path, calls, capsys):
    conversations = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "What is the time now?"}, {"from": "gpt", "value": "It is five o'clock sharp."}]
    conversations.write_text(json.dumps([{"conversations": turns}]))
    options = ["--dataset-path", str(conversations), "--num-prompts", "3", "--output-len", "4", "--prequeue-requests"]
    plain = bench(tmp_path, "throughput", "demo", *options)
    assert plain["dataset_name"] == "sharegpt"
    assert [call[0] for call in calls] == [["What is the time now?"] * 3]
    assert "--prequeue-requests changes nothing" in capsys.readouterr().err
    chat = bench(tmp_path, "throughput", "demo", *options, "--backend", "vllm-chat")
    (prompt, *_) = calls[-1][0]
    assert prompt["prompt"] != "What is the time now?"
    assert "What is the time now?" in prompt["prompt"]
    assert chat["total_input_tokens"] > plain["total_input_tokens"]
    assert chat["total_output_tokens"] == plain["total_output_tokens"] == 12


@pytest.mark.parametrize("benchmark", ["latency", "throughput", "startup"])
def test_without_the_engine_the_command_says_what_to_install(capsys, monkeypatch, benchmark):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm_server", "vllm_engine")]:
        monkeypatch.delitem(sys.modules, name)

    class NotInstalled:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in ("vllm_server", "vllm_engine"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    assert main(["bench", benchmark, "demo"]) == 2
    assert 'pip install "vllm-cli[serve]"' in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", "--help"])
    assert end.value.code == 0


@pytest.mark.parametrize("benchmark", ["latency", "throughput", "startup"])
def test_help_imports_no_torch(benchmark):
    code = f"""
import sys
from vllm_cli.main import main
try:
    main(["bench", "{benchmark}", "--help"])
finally:
    print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.stdout.splitlines()[-1] == "False"
