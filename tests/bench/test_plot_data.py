"""The curves of the pictures, held to the records that they are made of."""

import itertools

import numpy
import pytest

from tests.bench.saved_result import BEGAN, made_run, saved
from vllm_bench.measure.over_time import peak_concurrency
from vllm_bench.plots import cdf, dataset_stats, throughput, timeline, words
from vllm_bench.plots.request_timeline import pieces, ticks
from vllm_bench.plots.saved_requests import SavedRequest, saved_requests


def test_latencies_are_those_of_the_completed_records():
    run = made_run()
    done = [record for record in run.records if record.error is None]
    found = cdf.latencies(saved(run))
    expected = {
        "ttft": [record.ttft for record in done],
        "tpot": [record.tpot for record in done if record.tpot is not None],
        "itl": [gap for record in done for gap in record.itls],
        "e2el": [record.latency for record in done],
    }
    assert list(found) == list(expected)
    for name, times in expected.items():
        numpy.testing.assert_allclose(found[name], 1e3 * numpy.array(times), rtol=1e-9)


def test_without_details_only_whole_requests_are_known_and_only_if_none_failed():
    whole, failing = saved(made_run(failed=0)), saved(made_run(failed=1))
    for result in (whole, failing):
        del result["ttfts"]
        assert saved_requests(result) is None
    assert cdf.latencies(whole)["e2el"].tolist() == [1e3 * each for each in whole["latencies"]]
    assert cdf.latencies(failing) == {}


def test_a_cumulative_curve_has_the_share_of_values_not_above():
    x, share = cdf.cumulative(numpy.array([3.0, 1.0, 2.0, 2.0]))
    assert x.tolist() == [1, 1, 2, 2, 3]
    assert share.tolist() == [0, 25, 50, 75, 100]
    values = numpy.random.default_rng(0).exponential(1.0, 30_000)
    x, share = cdf.cumulative(values)
    assert len(x) < 3000
    assert (x[-1], share[-1]) == (values.max(), 100)
    for at, percent in zip(x[1::97], share[1::97], strict=True):
        assert percent == pytest.approx(100 * (values <= at).mean())


def test_requests_under_way_are_those_between_their_start_and_end():
    run = made_run(60)
    found = timeline.under_way(saved_requests(saved(run)))
    for moment, waiting, receiving in zip(
        found.moments[:-1] + numpy.diff(found.moments) / 2, found.waiting[:-1], found.receiving[:-1], strict=True
    ):
        now = moment + BEGAN
        there = [record for record in run.records if record.start <= now < record.ended]
        assert waiting == sum(not record.text_times or now < record.text_times[0] for record in there)
        assert receiving == len(there) - waiting
    assert found.waiting[-1] == found.receiving[-1] == 0


def test_the_most_under_way_is_the_saved_figure():
    run = made_run(80, failed=0)
    for record in run.records:
        record.sent = record.start
    found = timeline.under_way(saved_requests(saved(run)))
    assert (found.waiting + found.receiving).max() == peak_concurrency(run.records)


def test_one_that_begins_as_another_ends_does_not_meet_it():
    turns = [SavedRequest(0.1 * number, 0.05, [], 0.1, 1, 1, "") for number in range(50)]
    found = timeline.under_way(turns)
    assert set((found.waiting + found.receiving)[:-1]) == {1}


@pytest.mark.parametrize("bins", [10, 37])
def test_tokens_in_a_second_add_up_to_all_tokens(bins):
    run = made_run()
    result = saved(run)
    rates = timeline.rate(saved_requests(result), run.seconds, bins, tokens=True)
    width = run.seconds / bins
    assert rates.sum() * width == pytest.approx(result["total_output_tokens"])
    edges = BEGAN + width * numpy.arange(bins + 1)
    for number in range(bins):
        tokens = 0.0
        for record in run.records:
            if record.error is None:
                within = sum(edges[number] <= moment < edges[number + 1] for moment in record.text_times)
                tokens += record.output_tokens * within / len(record.text_times)
        assert rates[number] * width == pytest.approx(tokens, abs=1e-6)


def test_requests_in_a_second_add_up_to_the_completed_ones():
    run = made_run()
    rates = timeline.rate(saved_requests(saved(run)), run.seconds, 20, tokens=False)
    assert rates.sum() * run.seconds / 20 == pytest.approx(38)


def test_moments_of_another_tool_count_from_its_first_request():
    result = saved(made_run(5, failed=1))
    del result["fingerprint"]
    result["start_times"] = [5000.0 + start for start in result["start_times"]]
    result["ttfts"][0] = 0.0
    requests = saved_requests(result)
    assert requests[0].start == 0.0
    assert requests[0].ttft is None
    assert requests[1].ttft > 0


def test_lengths_and_their_bins():
    run = made_run()
    inputs, outputs = dataset_stats.lengths(saved(run))
    done = [record for record in run.records if record.error is None]
    assert inputs.tolist() == [record.prompt_len for record in done]
    assert outputs.tolist() == [record.output_tokens for record in done]
    for values in (inputs, outputs, numpy.array([7, 7]), numpy.arange(1000)):
        edges = dataset_stats.bin_edges(values)
        assert len(set(numpy.diff(edges))) == 1
        assert len(edges) <= 32
        assert numpy.histogram(values, edges)[0].sum() == len(values)


def test_many_lengths_are_shown_as_means_of_neighbours():
    assert dataset_stats.grouped(numpy.array([1, 2, 6, 4, 10]), 1).tolist() == [1, 2, 6, 4, 10]
    assert dataset_stats.grouped(numpy.array([1, 2, 6, 4, 10]), 2).tolist() == [1.5, 5, 10]


def sweep() -> list[dict]:
    results = []
    for block_size in (16, 32):
        for limit in (8, 1, 4):
            flags = {"max_concurrency": limit, "port": limit, "input_len": 32}
            keys = {"max_concurrency": limit, "sweep": {"serve": {"block-size": block_size}, "name": f"{limit}"}}
            keys["fingerprint"] = {"flags": flags}
            keys |= {"output_throughput": 100.0 * limit, "median_ttft_ms": 1.0 * limit, "p99_ttft_ms": 2.0 * limit}
            results.append(saved(made_run(20, failed=0), **keys))
    results[0]["trusted"] = False
    return results


def test_a_sweep_has_a_curve_for_each_setting_and_points_by_load():
    found = throughput.curves(sweep(), "ttft")
    assert [curve.name for curve in found] == ["block_size 16", "block_size 32"]
    for curve in found:
        assert [point.load for point in curve.points] == ["1", "4", "8"]
        assert [point.throughput for point in curve.points] == [100, 400, 800]
        assert [point.median for point in curve.points] == [1, 4, 8]
        assert [point.high for point in curve.points] == [2, 8, 16]
    assert [point.sure for point in found[0].points] == [True, True, False]


def test_a_curve_goes_through_the_mean_of_runs_made_again():
    points = [throughput.Point(100, 1, 4, "1", True), throughput.Point(300, 3, 8, "1", False)]
    points.append(throughput.Point(500, 7, None, "2", True))
    assert throughput.means(points) == [throughput.Point(200, 2, 6, "1", False), points[2]]


def test_runs_of_a_sweep_with_the_same_settings_share_a_curve():
    runs = [
        {
            "max_concurrency": 8,
            "latencies": [0.8, 0.3],
            "trusted": run > 0,
            "sweep": {"serve": {"max-num-seqs": seqs}, "bench": {"max-concurrency": 8}, "run": run},
        }
        for seqs in (16, 4)
        for run in range(2)
    ]
    found = cdf.groups(runs)
    assert [group.label for group in found] == [
        f"max_num_seqs {seqs} (2 runs) (1 of them not to be trusted)" for seqs in (4, 16)
    ]
    assert sorted(cdf.together(found[0].results)["e2el"]) == pytest.approx([300, 300, 800, 800])
    # Results of no sweep are someone's to tell apart.
    plain = [{**run, "date": str(number)} for number, run in enumerate(runs)]
    for run in plain:
        del run["sweep"]
    assert [len(group.results) for group in cdf.groups(plain)] == [1, 1, 1, 1]
    curves = throughput.curves([{**run, "median_ttft_ms": 1.0, "request_throughput": 2.0} for run in runs], "ttft")
    assert [curve.name for curve in curves] == ["max_num_seqs 4", "max_num_seqs 16"]


def test_results_are_named_by_what_differs():
    assert words.names(sweep())[:2] == ["block_size 16, at most 8 at a time", "block_size 16, at most 1 at a time"]
    same = [saved(made_run(10, failed=0), date=date) for date in ("a", "b")]
    assert words.names(same) == ["at most 8 at a time (a)", "at most 8 at a time (b)"]
    labelled = [saved(made_run(10, failed=0), label=label) for label in ("ours", "theirs")]
    assert words.names(labelled) == ["ours", "theirs"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_concurrency": None}, "all at once"),
        ({"max_concurrency": None, "request_rate": 2.5}, "2.5 requests/s (Poisson)"),
        ({"request_rate": 2.0, "burstiness": "inf"}, "2 requests/s (constant), at most 8 at a time"),
        ({"request_rate": 2.0, "burstiness": 0.5}, "2 requests/s (burstiness 0.5), at most 8 at a time"),
        (
            {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 9.5, "max_concurrency": None},
            "linear from 1 to 9.5 requests/s",
        ),
        ({"self_timed": True, "max_concurrency": None}, "at the moments of the trace"),
    ],
)
def test_the_load_in_words(keys, said):
    assert words.load(saved(made_run(3), **keys)) == said


def test_pieces_of_a_row_follow_each_other_and_have_the_colour_of_their_gap():
    request = SavedRequest(1.0, 0.5, [0.010, 0.012, 0.025, 0.0499, 0.05, 0.2], 1.0, 3, 7, "")
    found = pieces(request, [25, 50])
    assert [(piece.kind, piece.gaps) for piece in found] == [
        ("ttft", 1),
        ("low", 2),
        ("middle", 2),
        ("high", 2),
        ("rest", 1),
    ]
    assert found[0].begin == 1.0
    assert found[-1].end == 2.0
    for earlier, later in itertools.pairwise(found):
        assert later.begin == pytest.approx(earlier.end)
    assert found[1].end - found[1].begin == pytest.approx(0.022)
    assert [piece.kind for piece in pieces(SavedRequest(0, None, [], 1.0, 3, 0, "no"), [25, 50])] == ["failed"]


@pytest.mark.parametrize("seconds", [0.003, 0.9, 1.0, 7.3, 59.9, 100.0, 3600.0])
def test_ticks_are_round_and_few(seconds):
    found = ticks(seconds)
    assert found[0] == 0
    assert seconds - (found[1] - found[0]) < found[-1] <= seconds
    assert 5 <= len(found) <= 12
