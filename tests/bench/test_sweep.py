"""``vllm bench sweep serve``: its grid, its files, and what is left after failures, kills and interruptions."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.bench.mock_server import Plan, running
from vllm_bench.sweep.settings import Combination, combinations, linked
from vllm_cli.command import CommandError
from vllm_cli.main import main

ROOT = Path(__file__).parents[2]
BENCH = "vllm bench serve --num-prompts 2 --input-len 4 --output-len 3 --disable-tqdm"
MOCK = f"{sys.executable} {Path(__file__).with_name('sweep_server.py')}"


def sweep(folder: Path, *arguments: str, bench: str = BENCH) -> int:
    options = ["--bench-cmd", bench, "--output-dir", str(folder), "--experiment-name", "s", "--num-runs", "1"]
    return main(["bench", "sweep", "serve", *options, *arguments])


def results(folder: Path) -> list[dict]:
    files = sorted((folder / "s").glob("*--run*.json"))
    return [json.loads(file.read_text()) for file in files]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "s" / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_of_lists_gives_every_combination(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("max-num-seqs: [1, 2]\nenforce_eager: [true, false, null]\n")
    found = combinations(file, [["seed", "7", "8"]], "--serve-vary")
    assert len(found) == 12
    assert found[0].words(has_negations=True) == ["--max-num-seqs=1", "--enforce-eager", "--seed=7"]
    assert found[3].words(has_negations=True) == ["--max-num-seqs=1", "--no-enforce-eager", "--seed=8"]
    assert found[3].words(has_negations=False) == found[5].words(has_negations=True) == ["--max-num-seqs=1", "--seed=8"]
    assert found[0].name == "max-num-seqs=1-enforce_eager=true-seed=7"


def test_lists_and_names_give_what_they_say(tmp_path):
    file = tmp_path / "given.json"
    file.write_text('[{"a_b": 0.5, "_benchmark_name": "half"}, {"a_b": {"c": [1]}, "d": ["x", 2]}]')
    half, other = combinations(file, [], "--serve-vary")
    assert (half.name, half.words(has_negations=True)) == ("half", ["--a-b=0.5"])
    assert other.words(has_negations=True) == ['--a-b={"c": [1]}', "--d", "x", "2"]
    file.write_text('{"small": {"a": 1}, "large": {"a": 2}}')
    assert [each.name for each in combinations(file, [["b", "3"]], "--serve-vary")] == ["small-b=3", "large-b=3"]
    assert combinations(None, [], "--serve-vary") == [Combination()]


def test_linked_settings_are_the_same_on_both_sides():
    assert linked(
        [("max_num_seqs", "max-concurrency")], Combination({"max-num-seqs": 4}), Combination({"max_concurrency": 4})
    )
    assert not linked([("a", "b")], Combination({"a": 1}), Combination({"b": 2}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "neither a list"),
        ('{"a": [1], "b": {}}', "neither a list"),
        ('{"a": []}', "neither a list"),
        ("[1]", "neither a list"),
        ("{", "Expecting"),
        ('[{"_benchmark_name": "x"}, {"_benchmark_name": "x"}]', "the same _benchmark_name"),
        ('[{"_benchmark_name": 1}]', "no text"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, content, said):
    file = tmp_path / "params.json"
    file.write_text(content)
    with pytest.raises(CommandError, match=said):
        combinations(file, [], "--serve-vary")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--serve-cmd or --base-url"),
        (["--base-url", "http://x", "--serve-vary", "a", "1"], "--serve-vary: the server of --base-url"),
        (["--serve-cmd", "vllm serve demo --port 1"], "--port: the sweep chooses"),
        (["--serve-cmd", "s", "--serve-vary", "host", "x"], "--host: the sweep chooses"),
        (["--serve-cmd", "s", "--serve-vary", "a"], "a name and its values"),
        (["--serve-cmd", "s", "--bench-vary", "result-dir", "x"], "--result-dir: the sweep chooses"),
        (["--serve-cmd", "s", "--bench-vary", "num-prompts", "1", "1"], "the same settings"),
        (["--serve-cmd", "s", "--bench-vary", "num-prompts", "none"], "--num-prompts"),
        (["--serve-cmd", "vllm serve demo", "--serve-vary", "max-num-seq", "1"], "--max-num-seq"),
        (["--serve-cmd", "s", "--bench-cmd", "bench"], "--bench-cmd: it must begin"),
        (["--serve-cmd", "s", "--link-vars", "a=b", "--serve-vary", "a", "1"], "leaves no combination"),
        (["--serve-cmd", "s", "--link-vars", "a"], "is not A=B"),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path, capsys, arguments, said):
    try:
        code = sweep(tmp_path, *arguments)
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_running_server_is_measured_under_each_load(tmp_path, capsys):
    with running([Plan(0.01, 0.001)]) as server:
        assert sweep(tmp_path, "--base-url", server.url, "--bench-vary", "max-concurrency", "1", "2") == 0
        assert len(server.log()) == 2 * 2
        assert sweep(tmp_path, "--base-url", server.url, "--bench-vary", "max-concurrency", "1", "2") == 2
        assert "holds results already" in capsys.readouterr().err
        # With another load beside, only that one is run, and what a kill has left behind is nobody's result.
        (tmp_path / "s" / ".unfinished.json").write_text("{}")
        more = ["--bench-vary", "max-concurrency", "1", "2", "3", "--resume"]
        assert sweep(tmp_path, "--base-url", server.url, *more) == 0
        assert len(server.log()) == 3 * 2
    assert [each["max_concurrency"] for each in results(tmp_path)] == [1, 2, 3]
    assert all(each["sweep"]["status"] == "done" for each in results(tmp_path))
    rows = table(tmp_path)
    assert [(row["bench.max-concurrency"], row["run"], row["completed"]) for row in rows[:3]] == [
        ("1", "0", "2"),
        ("2", "0", "2"),
        ("3", "0", "2"),
    ]
    assert float(rows[0]["mean_ttft_ms"]) == results(tmp_path)[0]["mean_ttft_ms"]
    out = capsys.readouterr().out
    assert "does not let its prefix cache be emptied" in out
    assert not (tmp_path / "s" / ".unfinished.json").exists()


def test_failures_are_kept_and_the_others_go_on(tmp_path, capsys):
    """A server that does not start, one that dies of its second request, and a good one, twice each."""
    arguments = ["--serve-cmd", MOCK, "--num-runs", "2", "--serve-vary", "mode"]
    bench = f"{BENCH} --max-concurrency 1"
    assert sweep(tmp_path, *arguments, "refuse", "die", "good", bench=bench) == 1
    ends = {(each["sweep"]["serve"]["mode"], each["sweep"]["run"]): each["sweep"] for each in results(tmp_path)}
    assert [ends["refuse", run]["status"] for run in (0, 1)] == ["failed", "failed"]
    assert "I will not start" in ends["refuse", 0]["error"]
    assert [ends["die", run]["status"] for run in (0, 1)] == ["partial", "partial"]
    assert "1 of 2 requests failed" in ends["die", 0]["error"]
    assert [ends["good", run]["status"] for run in (0, 1)] == ["done", "done"]
    assert ends["good", 1]["prefix_cache_reset"] is True
    out = capsys.readouterr().out
    assert [out.count(f"starting a server: mode={mode}") for mode in ("refuse", "die", "good")] == [1, 2, 1]
    assert "2 failed" in out and "2 partial" in out
    # Only what was not done is tried again.
    assert sweep(tmp_path, *arguments, "refuse", "die", "good", "--dry-run", "--resume", bench=bench) == 0
    out = capsys.readouterr().out
    assert (out.count("to do: "), out.count("done: ")) == (4, 2)


def test_untrusted_runs_are_marked(tmp_path, capsys, monkeypatch):
    from vllm_bench.sweep.lines import sweep_lines

    about = {"name": "a", "serve": {}, "bench": {"rate": "1"}, "run": 0, "status": "done", "error": None}
    result = {"sweep": about, "trusted": False, "distrust_reasons": ["late"], "mean_ttft_ms": 2.0}
    lines = sweep_lines([result, {**result, "sweep": {**about, "run": 1}, "trusted": True, "mean_ttft_ms": 4.0}])
    assert lines[0].split() == ["rate", "runs", "ttft", "ms"]
    assert lines[1].split() == ["1", "2", "3.00", "1", "NOT", "TO", "BE", "TRUSTED"]
    assert lines[-1] == "a: late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_leaves_no_server_and_no_half_result(tmp_path, number):
    """The second run is under way: the first is not repeated afterwards, the second is."""
    command = [sys.executable, "-m", "vllm_cli", "bench", "sweep", "serve", "--serve-cmd", f"{MOCK} --mode slow"]
    command += ["--bench-cmd", BENCH, "--output-dir", str(tmp_path), "--experiment-name", "s", "--num-runs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process.stdout:
        for line in process.stdout:
            if line.startswith("run 2"):
                break
        deadline = time.monotonic() + 10
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < deadline
        server = next(child for child in children if "sweep_server.py" in " ".join(child.cmdline()))
        process.send_signal(number)
        code = process.wait(20)
    assert code == (143 if number == signal.SIGTERM else -number)
    server.wait(10) if server.is_running() else None
    (first,) = [each for each in results(tmp_path) if each["sweep"]["status"] == "done"]
    assert first["sweep"]["run"] == 0
    if number == signal.SIGTERM:
        return
    stamp = os.stat(next((tmp_path / "s").glob("*--run0.json"))).st_mtime_ns
    assert sweep(tmp_path, "--serve-cmd", f"{MOCK} --mode slow", "--num-runs", "2", "--resume") == 0
    assert [each["sweep"]["status"] for each in results(tmp_path)] == ["done", "done"]
    assert os.stat(next((tmp_path / "s").glob("*--run0.json"))).st_mtime_ns == stamp


def test_the_demo_is_served_and_measured(tmp_path):
    """More tokens than its positions are refused by the server, whose prefix cache is emptied between the runs."""
    options = ["--serve-cmd", "vllm serve demo --max-num-seqs 4", "--serve-vary", "max-model-len", "99999", "256"]
    assert sweep(tmp_path, *options, "--bench-vary", "max-concurrency", "1", "2") == 1
    ends = {
        (each["sweep"]["serve"]["max-model-len"], each["sweep"]["bench"]["max-concurrency"]): each
        for each in results(tmp_path)
    }
    for streams in ("1", "2"):
        good, bad = ends["256", streams], ends["99999", streams]
        assert good["sweep"]["status"] == "done" and good["sweep"]["prefix_cache_reset"]
        assert good["completed"] == 2 and good["total_input_tokens"] == 8
        assert bad["sweep"]["status"] == "failed" and "--max-model-len=99999" in bad["sweep"]["error"]
    left = [process for process in psutil.Process().children(recursive=True) if "serve" in process.cmdline()]
    assert not left
