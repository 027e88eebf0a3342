"""What ``vllm bench serve`` saves, and what it must not."""

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.mock_server import MockServer, Plan, running
from vllm_cli.main import main

DETAILED = {"input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"}
KEPT = {"latencies", "queue_times"}


@pytest.fixture(scope="module")
def plain() -> Iterator[MockServer]:
    """A server that answers at once."""
    with running([Plan()]) as server:
        yield server


def bench(server: MockServer, folder: Path, *arguments: str) -> int:
    options = ["--input-len", "8", "--output-len", "5", "--result-dir", str(folder), "--result-filename", "r.json"]
    return main(["bench", "serve", "--base-url", server.url, *options, *arguments])


def saved(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "r.json").read_text().splitlines()]


def test_each_request_has_its_place_in_the_detailed_arrays(tmp_path):
    with running([Plan(0.02, 0.002), Plan(status=500), Plan(num_tokens=2)]) as server:
        assert bench(server, tmp_path, "--num-prompts", "6", "--max-concurrency", "1", "--save-detailed") == 1
    (result,) = saved(tmp_path)
    assert {len(result[key]) for key in DETAILED | KEPT} == {6}
    assert result["input_lens"] == [8] * 6
    assert result["output_lens"] == [5, 0, 2] * 2
    assert result["errors"] == ["", "status 500: refused with 500", ""] * 2
    assert [ttft is None for ttft in result["ttfts"]] == [False, True, False] * 2
    assert [len(itls) for itls in result["itls"]] == [4, 0, 1] * 2
    assert result["generated_texts"] == [" tok" * 5, "", " tok" * 2] * 2
    assert result["start_times"] == sorted(result["start_times"])
    assert result["start_times"][0] < 0.1
    mean = math.fsum(
        1e3 * latency for latency, error in zip(result["latencies"], result["errors"], strict=True) if not error
    )
    assert result["mean_e2el_ms"] == pytest.approx(mean / 4)


def test_without_detail_latencies_and_queue_times_are_kept(plain, tmp_path):
    assert bench(plain, tmp_path, "--num-prompts", "2") == 0
    (result,) = saved(tmp_path)
    assert not DETAILED & set(result)
    assert set(result) >= KEPT


def test_results_are_appended_line_by_line_and_else_replaced(plain, tmp_path):
    for number in range(3):
        bench(plain, tmp_path, "--num-prompts", "1", "--append-result", "--metadata", f"number={number}")
    assert [result["number"] for result in saved(tmp_path)] == ["0", "1", "2"]
    bench(plain, tmp_path, "--num-prompts", "1")
    assert len(saved(tmp_path)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o666 & ~umask


def test_a_result_that_cannot_be_written_leaves_the_one_before(plain, tmp_path, monkeypatch, capsys):
    bench(plain, tmp_path, "--num-prompts", "1", "--metadata", "which=first")

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    assert bench(plain, tmp_path, "--num-prompts", "1") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert saved(tmp_path)[0]["which"] == "first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metadata", "duration=5"], "a result has that key"),
        (["--metadata", "a=1", "a=2"], "comes twice"),
        (["--goodput", "ttft:1", "ttft:2"], "two limits"),
    ],
)
def test_what_cannot_be_in_a_result_is_refused_before_anything_is_sent(plain, tmp_path, capsys, options, said):
    before = len(plain.log())
    assert bench(plain, tmp_path, "--num-prompts", "1", *options) == 2
    assert len(plain.log()) == before
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--base-url", "http://127.0.0.1:9", "--num-prompts", "1", "--result-dir", "{file}"],
        ["serve", "--base-url", "http://127.0.0.1:9", "--num-prompts", "1", "--result-filename", "{folder}"],
        ["latency", "--output-json", "{file}/r.json", "demo"],
        ["throughput", "--output-json", "{file}/r.json", "demo"],
        ["startup", "--output-json", "{file}/r.json", "demo"],
        [
            *"sweep serve --base-url http://127.0.0.1:9".split(),
            "--bench-cmd",
            "vllm bench serve",
            "--output-dir",
            "{file}",
        ],
    ],
)
def test_a_result_that_no_file_would_take_is_refused_before_anything_is_measured(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    assert main(["bench", *(word.format(**places) for word in command)]) == 2
    captured = capsys.readouterr()
    assert "no result can be saved in" in captured.err
    assert str(tmp_path) in captured.err
    assert not captured.out


def test_metadata_without_a_saved_result_is_refused(capsys):
    assert main(["bench", "serve", "--metadata", "a=1"]) == 2
    assert "--save-result" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--metadata", "a"], ["--goodput", "itl:5"]])
def test_a_pair_that_is_none_is_refused(capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_goodput_is_that_of_the_requests_within_all_limits(tmp_path, capsys):
    with running([Plan(0.01, 0.001), Plan(0.25, 0.001)]) as server:
        bench(server, tmp_path, "--num-prompts", "8", "--goodput", "ttft:150", "e2el:10000")
    (result,) = saved(tmp_path)
    assert result["request_goodput"] == pytest.approx(4 / result["duration"])
    assert result["request_goodput"] == pytest.approx(result["request_throughput"] / 2)
    assert "request goodput" in capsys.readouterr().out


def test_a_result_tells_machine_versions_flags_and_seed(plain, tmp_path):
    bench(plain, tmp_path, "--num-prompts", "2", "--seed", "7", "--extra-body", '{"stop": ["x"]}')
    (result,) = saved(tmp_path)
    found = result["fingerprint"]
    assert found["seed"] == result["seed"] == 7
    assert {"cpu", "cores", "memory", "os"} <= set(found["machine"])
    assert found["versions"]["python"].startswith("3.")
    assert found["versions"]["vllm_bench"]
    assert found["flags"]["num_prompts"] == 2
    assert found["flags"]["request_rate"] == "inf"
    assert found["flags"]["extra_body"] == {"stop": ["x"]}
    assert result["partial"] is False
    assert result["confidence_level"] == 0.95


def test_no_secret_is_saved_or_shown(tmp_path, monkeypatch, capsys):
    """Neither as a flag, nor as what a server or a user repeats."""
    secrets = ["sk-of-the-command-line", "of-the-header-4711", "of-the-body-4711", "of-the-url"]
    with running([Plan(status=500)]) as server:
        address = server.url.replace("http://", f"http://user:{secrets[3]}@")
        options = ["--api-key", secrets[0], "--header", f"X-Gate={secrets[1]}", f"Cookie={secrets[1]}"]
        options += ["--extra-body", json.dumps({"api_key": secrets[2]}), "--metadata", f"note=with {secrets[0]}"]
        bench(server, tmp_path, "--num-prompts", "1", "--base-url", address, *options, "--save-detailed")
    text = (tmp_path / "r.json").read_text() + capsys.readouterr().out
    assert [secret for secret in secrets if secret in text] == []
    (result,) = saved(tmp_path)
    assert result["fingerprint"]["flags"]["header"] == ["X-Gate", "Cookie"]
    assert "api_key" not in result["fingerprint"]["flags"]


def test_intervals_stand_beside_their_figures(tmp_path, capsys):
    with running([Plan(0.01, 0.002), Plan(0.02, 0.002), Plan(0.03, 0.001)]) as server:
        bench(server, tmp_path, "--num-prompts", "40", "--max-concurrency", "4", "--goodput", "ttft:25")
    (result,) = saved(tmp_path)
    intervals = result["confidence_intervals"]
    for name in (
        "mean_ttft_ms",
        "median_tpot_ms",
        "mean_itl_ms",
        "mean_e2el_ms",
        "request_throughput",
        "request_goodput",
    ):
        low, high = intervals[name]
        assert low <= result[name] <= high
    assert intervals["p99_ttft_ms"][1] is None
    assert set(intervals) <= set(result)
    assert "95 % interval" in capsys.readouterr().out


def test_a_server_that_counts_more_than_was_asked_for_is_told(tmp_path, capsys):
    with running([Plan(num_tokens=9), Plan()]) as server:
        bench(server, tmp_path, "--num-prompts", "4")
    (result,) = saved(tmp_path)
    assert result["output_token_mismatches"] == 2
    assert "9 tokens where 5 were asked for" in capsys.readouterr().out
