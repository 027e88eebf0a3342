"""The tool that runs our benchmark and the peer's in turn: the same work for both, and when they agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import vllm_engine
from tools.peers.agreement import JUDGED, Agreement
from tools.peers.bench_load import BenchLoad

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path(vllm_engine.__file__).with_name("demo")


def result(factor: float = 1.0, **other: Any) -> dict[str, Any]:
    times = dict.fromkeys(("mean_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms"), 10.0 * factor)
    counts = {"completed": 2, "failed": 0, "total_input_tokens": 8, "total_output_tokens": 6, "trusted": True}
    return {**times, "output_throughput": 100.0 / factor, **counts, **other}


def test_the_median_of_neighbours_decides() -> None:
    """The machine is three times slower in one round, for both."""
    agreement = Agreement("x", [result(), result(3.0), result()], [result(1.02), result(3.06), result(1.5)])
    assert agreement.ratios("mean_ttft_ms") == pytest.approx([1.02, 1.02, 1.5])
    assert all(agreement.agrees(figure) for figure in JUDGED) and agreement.reached
    assert not Agreement("x", [result()], [result(1.04)]).reached
    assert agreement.lines()[2].split()[-5:] == ["1.020", "1.020", "to", "1.500", "yes"]
    assert json.loads(json.dumps(agreement.as_json()))["peer"][1]["mean_ttft_ms"] == pytest.approx(30.6)


def test_other_work_is_not_compared() -> None:
    agreement = Agreement("x", [result()], [result(total_output_tokens=7)])
    assert not agreement.reached
    assert agreement.lines() == [f"x: {agreement.complaint()}"] and "not the same work" in agreement.lines()[0]


def test_doubtful_runs_are_told() -> None:
    doubtful = result(trusted=False, distrust_reasons=["late"])
    assert Agreement("x", [doubtful], [result()]).lines()[-1] == "ours gave no verdict in 1 of 1 runs: late"


def test_prompts_have_lengths_around_the_mean_and_a_seed(tmp_path: Path) -> None:
    load = BenchLoad(requests=40, input_len=8, output_len=20, streams=2)
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        load.write_prompts(DEMO, file, seed)
    first, again, other = (json.loads(file.read_text()) for file in files)
    assert first == again != other
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for turn, mean in enumerate((8, 20)):
        lengths = [len(tokenizer.encode(each["conversations"][turn]["value"]).ids) for each in first]
        assert len(lengths) == 40 and mean // 2 <= min(lengths) < mean < max(lengths) <= mean + mean // 2
    assert "http://x" in load.options("http://x", "m", DEMO, files[0], tmp_path / "r.json")


def test_a_wrong_word_is_refused_at_once() -> None:
    command = [sys.executable, str(ROOT / "tools" / "compare_bench.py"), "--servers", "nobody"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "argument --servers: invalid choice: 'nobody'" in wrong.stderr
