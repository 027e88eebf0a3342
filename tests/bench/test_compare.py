"""``vllm bench compare`` on made-up results whose true ratio is known."""

import json
from pathlib import Path

import numpy
import pytest

from vllm_bench.measure.intervals import time_intervals
from vllm_bench.measure.start_phases import StartPhases
from vllm_bench.startup import StartupTiming, startup_figures
from vllm_cli.main import main

FLAGS = {"dataset_name": "random", "num_prompts": 400, "random_input_len": 32, "base_url": "http://a:1", "goodput": []}


def result(factor: float, seed: int, **changes) -> dict:
    """A run whose times to first token have mean ``100 * factor`` ms, and whose throughput is ``10 / factor``."""
    times = factor * numpy.random.default_rng(seed).gamma(20, 0.005, 400)
    rate = 10 / factor
    intervals = time_intervals("ttft", [[value] for value in times], [])
    return {
        "model_id": "m",
        "tokenizer_id": "/a/m",
        "endpoint_type": "openai",
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 8,
        "num_prompts": 400,
        "date": "20260101-000000",
        "completed": 400,
        "failed": 0,
        "partial": False,
        "trusted": True,
        "duration": 40.0,
        "fingerprint": {"machine": {"cpu": "x"}, "flags": FLAGS, "seed": 0},
        "request_throughput": rate,
        "mean_ttft_ms": 1e3 * times.mean(),
        "std_ttft_ms": 1e3 * times.std(),
        "confidence_intervals": {**intervals, "request_throughput": [rate * 0.99, rate * 1.01]},
        **changes,
    }


def compare(folder: Path, base: list[dict], new: list[dict], *options: str) -> int:
    names = []
    for side, results in (("a", base), ("b", new)):
        files = [folder / f"{side}{number}.json" for number in range(len(results))]
        for file, each in zip(files, results, strict=True):
            file.write_text(json.dumps(each))
        names.append(",".join(map(str, files)))
    return main(["bench", "compare", *names, *options])


def figures(folder: Path, capsys, base: list[dict], new: list[dict], *options: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = compare(folder, base, new, "--json", *options)
    return code, json.loads(capsys.readouterr().out)


def test_a_worsening_beyond_the_threshold_ends_with_1(tmp_path, capsys):
    code, found = figures(tmp_path, capsys, [result(1, 1)], [result(1.2, 2)], "--fail-if-worse-than", "5%")
    ttft, rate = found["figures"]["mean_ttft_ms"], found["figures"]["request_throughput"]
    assert code == found["exit_code"] == 1
    assert ttft["ratio_interval"][0] < 1.2 < ttft["ratio_interval"][1]
    assert ttft["ratio"] == pytest.approx(1.2, rel=0.05)
    assert (ttft["verdict"], ttft["fails"], ttft["threshold"]) == ("worse", True, 0.05)
    assert rate["ratio"] == pytest.approx(1 / 1.2)
    assert (rate["more_is_better"], rate["verdict"], rate["fails"]) == (True, "worse", True)
    assert "std_ttft_ms" not in found["figures"]


@pytest.mark.parametrize("limit", ["25%", "mean_ttft_ms:30%", "request_throughput:20%,mean_ttft_ms:25%"])
def test_within_the_threshold_it_ends_with_0(tmp_path, limit):
    assert compare(tmp_path, [result(1, 1)], [result(1.2, 2)], "--fail-if-worse-than", limit) == 0


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_the_same_and_better_end_with_0(tmp_path, capsys, factor):
    code, found = figures(tmp_path, capsys, [result(1, 1)], [result(factor, 2)], "--fail-if-worse-than", "5%")
    assert code == 0
    assert {each["verdict"] for each in found["figures"].values()} == {"same" if factor == 1 else "better"}


def test_without_a_threshold_only_what_is_beyond_doubt_is_told(tmp_path, capsys):
    code, found = figures(tmp_path, capsys, [result(1, 1)], [result(1, 2)])
    assert code == 0
    assert {each["verdict"] for each in found["figures"].values()} == {"unclear"}
    code, found = figures(tmp_path, capsys, [result(1, 1)], [result(1.5, 2)])
    assert code == 0
    assert {each["verdict"] for each in found["figures"].values()} == {"worse"}


def test_a_wait_that_only_tells_how_many_requests_there_were_is_left_out(tmp_path, capsys):
    waiting = {"mean_client_queue_time_ms": 5.0}
    for rate, shown in (("inf", False), (20.0, True)):
        waiting["request_rate"] = rate
        _, found = figures(tmp_path, capsys, [result(1, 1, **waiting)], [result(1, 2, **waiting)])
        assert ("mean_client_queue_time_ms" in found["figures"]) == shown


def test_iterations_of_a_batch_are_compared_by_their_own_spread(tmp_path, capsys):
    """The results of ``bench latency``."""
    rng = numpy.random.default_rng(1)
    sides = []
    for mean in (1.0, 1.1):
        latencies = rng.normal(mean, 0.02, 30).tolist()
        sides.append([{"model_id": "m", "avg_latency": float(numpy.mean(latencies)), "latencies": latencies}])
    code, found = figures(tmp_path, capsys, *sides, "--fail-if-worse-than", "5%")
    low, high = found["figures"]["avg_latency"]["ratio_interval"]
    assert (code, low < 1.1 < high, high - low < 0.05) == (1, True, True)


def latency_result(**changes) -> dict:
    return {"model_id": "m", "avg_latency": 1.0, "latencies": [1.0, 1.01, 0.99], "percentiles": {}} | changes


def throughput_result(**changes) -> dict:
    keys = {"elapsed_time": 2.0, "num_requests": 8, "requests_per_second": 4.0, "tokens_per_second": 99.0}
    return {"model_id": "m", "output_tokens_per_second": 66.0} | keys | changes


def startup_result(seconds: list[float], **changes) -> dict:
    """Starts whose weights take half of the time."""
    runs = [
        StartupTiming(value - 0.1, value, StartPhases({"python": value / 2, "weights": value / 2}, {}, 0.0))
        for value in seconds
    ]
    return {"model_id": "m"} | startup_figures(runs) | changes


def test_a_few_iterations_of_a_batch_have_an_interval_too(tmp_path, capsys):
    slower = latency_result(avg_latency=1.2, latencies=[1.2, 1.19, 1.21])
    code, found = figures(tmp_path, capsys, [latency_result()], [slower], "--fail-if-worse-than", "5%")
    low, high = found["figures"]["avg_latency"]["ratio_interval"]
    assert (code, low < 1.2 < high, found["figures"]["avg_latency"]["verdict"]) == (1, True, "worse")


def test_starts_are_compared_by_their_means_and_phase_by_phase(tmp_path, capsys):
    base, new = startup_result([1.0, 1.02, 0.98, 1.01]), startup_result([1.5, 1.52, 1.49, 1.51])
    code, found = figures(tmp_path, capsys, [base], [new], "--fail-if-worse-than", "10%")
    first = found["figures"]["first_token_seconds"]
    assert code == 1
    assert first["base"] == pytest.approx(1.0025)
    assert first["ratio"] == pytest.approx(1.505 / 1.0025)
    # Student's t for four values each: the reach of a mean is 3.182 standard errors.
    errors = [numpy.std(values, ddof=1) / 2 for values in ([1.0, 1.02, 0.98, 1.01], [1.5, 1.52, 1.49, 1.51])]
    reach = 3.182 * numpy.hypot(errors[0] / 1.0025, errors[1] / 1.505) * first["ratio"]
    assert first["ratio_interval"] == pytest.approx([first["ratio"] - reach, first["ratio"] + reach], rel=0.005)
    assert {"phase: python", "phase: weights", "healthy_seconds"} <= set(found["figures"])
    assert found["figures"]["phase: weights"]["threshold"] is None
    assert figures(tmp_path, capsys, [base], [base], "--fail-if-worse-than", "10%")[0] == 0


def test_throughput_without_a_server_needs_several_runs(tmp_path, capsys):
    one = throughput_result()
    assert compare(tmp_path, [one], [one], "--fail-if-worse-than", "5%") == 3
    runs = [[throughput_result(tokens_per_second=each) for each in side] for side in ((99, 100, 101), (79, 80, 81))]
    code, found = figures(tmp_path, capsys, *runs, "--fail-if-worse-than", "5%")
    assert (code, found["figures"]["tokens_per_second"]["verdict"]) == (1, "worse")
    assert "output_tokens_per_second" in found["figures"]


def test_other_settings_of_the_engine_are_told_and_compared(tmp_path, capsys):
    sides = [
        [latency_result(fingerprint={"flags": {"num_iters": n}, "settings": {"max_num_seqs": str(n)}, "seed": 0})]
        for n in (3, 4)
    ]
    code, found = figures(tmp_path, capsys, *sides)
    assert (code, found["objections"]) == (0, [])
    assert "settings of the engine differ: max_num_seqs" in found["notes"]


@pytest.mark.parametrize(
    ("base", "new", "said"),
    [
        ([latency_result()], [throughput_result()], "BASE is of bench latency, NEW of bench throughput"),
        ([startup_result([1.0])], [result(1, 1)], "BASE is of bench startup, NEW of bench serve"),
        ([latency_result(), result(1, 1)], [result(1, 1)], "BASE mixes results of bench latency and bench serve"),
        ([result(1, 1)], [{"x": 1}], "NEW holds no result of a benchmark"),
    ],
)
def test_results_of_several_benchmarks_are_not_mixed(tmp_path, capsys, base, new, said):
    assert compare(tmp_path, base, new) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


def sweep_folder(folder: Path, factors: dict[int, float], seed: int) -> Path:
    """Two runs with each ``max-concurrency``."""
    folder.mkdir()
    for number in range(2):
        for places, factor in factors.items():
            about = {"name": f"{places}-{number}", "serve": {}, "bench": {"max-concurrency": places}, "run": number}
            content = {"sweep": about | {"status": "failed", "error": "no server"}}
            if factor:
                content = result(factor, seed + number, max_concurrency=places, sweep=about | {"status": "done"})
            (folder / f"{places}--run{number}.json").write_text(json.dumps(content))
    return folder


def test_sweeps_are_compared_setting_by_setting(tmp_path, capsys):
    base = sweep_folder(tmp_path / "a", {4: 1.0, 8: 1.0, 16: 1.0, 32: 0}, 1)
    new = sweep_folder(tmp_path / "b", {4: 1.0, 8: 1.3, 32: 1.0}, 1)
    command = ["bench", "compare", str(base), str(new), "--fail-if-worse-than", "mean_ttft_ms:5%"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "max-concurrency=8: worse: mean_ttft_ms" in captured.err
    assert "max-concurrency=4: " not in captured.err
    for note in (
        "BASE: 2 runs failed and are left out",
        "only BASE has the settings max-concurrency=16",
        "only NEW has the settings max-concurrency=32",
    ):
        assert f"note: {note}" in captured.out
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(each["settings"], each["exit_code"], each["runs"]) for each in found["pairs"]] == [
        ("max-concurrency=4", 0, [2, 2]),
        ("max-concurrency=8", 1, [2, 2]),
    ]
    empty = tmp_path / "c"
    empty.mkdir()
    assert main(["bench", "compare", str(base), str(empty)]) == 2
    assert main(["bench", "compare", str(base), str(sweep_folder(tmp_path / "d", {64: 1.0, 65: 1.0}, 1))]) == 2
    assert "no settings of a sweep in common" in capsys.readouterr().err


def test_chance_is_not_taken_for_a_worsening(tmp_path, capsys):
    wide = {"confidence_intervals": {"mean_ttft_ms": [60, 160]}, "mean_ttft_ms": 100.0}
    other = {**wide, "mean_ttft_ms": 110.0}
    base, new = result(1, 1, **wide), result(1, 2, **other)
    code, found = figures(tmp_path, capsys, [base], [new], "--fail-if-worse-than", "mean_ttft_ms:5%")
    assert (code, found["figures"]["mean_ttft_ms"]["verdict"]) == (0, "unclear")


def test_false_alarms_are_rare(tmp_path, capsys):
    codes = [
        compare(tmp_path, [result(1, 2 * n)], [result(1, 2 * n + 1)], "--threshold", "mean_ttft_ms:0%")
        for n in range(40)
    ]
    assert sum(codes) <= 4


def test_several_runs_a_side_may_be_in_files_or_in_one(tmp_path, capsys):
    base, new = [result(factor, 1) for factor in (1, 1.01, 0.99)], [result(factor, 1) for factor in (1.1, 1.11, 1.09)]
    code, found = figures(tmp_path, capsys, base, new, "--fail-if-worse-than", "5%")
    assert (code, found["runs"]) == (1, [3, 3])
    assert found["figures"]["mean_ttft_ms"]["ratio"] == pytest.approx(1.1, rel=1e-3)
    joined = tmp_path / "all.json"
    joined.write_text("\n".join(json.dumps(each) for each in new))
    names = ",".join(str(tmp_path / f"a{number}.json") for number in range(3))
    assert main(["bench", "compare", names, str(joined), "--fail-if-worse-than", "5%"]) == 1
    assert "request_throughput, mean_ttft_ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trusted": False, "distrust_reasons": ["sent late"]}, "not trusted: sent late"),
        ({"partial": True, "partial_reason": "interrupted"}, "partial: interrupted"),
        ({"failed": 3}, "3 requests failed"),
        ({"model_id": "other"}, "model_id differs: m and other"),
        ({"max_concurrency": 9}, "max_concurrency differs: 8 and 9"),
        (
            {"fingerprint": {"flags": {**FLAGS, "random_input_len": 64}, "seed": 0}},
            "random_input_len differs: 32 and 64",
        ),
        ({"fingerprint": {"flags": FLAGS, "seed": 1}}, "seed differs: 0 and 1"),
    ],
)
def test_what_cannot_be_compared_or_believed_ends_with_3(tmp_path, capsys, change, said):
    assert compare(tmp_path, [result(1, 1)], [result(1, 2, **change)], "--fail-if-worse-than", "5%") == 3
    captured = capsys.readouterr()
    assert "NO VERDICT" in captured.err
    assert said in captured.err
    assert "mean_ttft_ms" in captured.out


def test_another_address_machine_and_place_of_the_model_are_no_other_workload(tmp_path, capsys):
    elsewhere = {"fingerprint": {"machine": {"cpu": "y"}, "flags": {**FLAGS, "base_url": "http://b:2"}, "seed": 0}}
    assert compare(tmp_path, [result(1, 1)], [result(1, 2, tokenizer_id="/b/m", **elsewhere)]) == 0
    assert "machines of the client differ" in capsys.readouterr().out


def test_single_runs_without_intervals_give_no_verdict(tmp_path, capsys):
    plain = [result(1, seed, confidence_intervals={}) for seed in (1, 2)]
    assert compare(tmp_path, plain[:1], plain[1:], "--fail-if-worse-than", "5%") == 3
    assert "several runs a side" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["5", "x%", "nothing:5%", "-1%", "std_ttft_ms:5%"])
def test_a_threshold_that_is_none_is_refused(tmp_path, capsys, limit):
    with pytest.raises(SystemExit) as end:
        compare(tmp_path, [result(1, 1)], [result(1, 2)], f"--fail-if-worse-than={limit}")
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), ("{", "no JSON"), ("[1]", "no result"), ("", "empty")]
)
def test_a_file_that_holds_no_result_is_one_line(tmp_path, capsys, content, said):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    assert main(["bench", "compare", str(file), str(file)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_threshold_for_a_figure_that_is_not_there_is_refused(tmp_path, capsys):
    assert compare(tmp_path, [result(1, 1)], [result(1, 2)], "--threshold", "p99_itl_ms:5%") == 2
    assert "p99_itl_ms" in capsys.readouterr().err
