"""The tool that loads our server and the peer's in turn: ratios, goals, and servers that sleep but for their turns."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.peers.served import Served, cpu_seconds, run_client, running
from tools.peers.server_contest import GOALS, ServerContest

ROOT = Path(__file__).resolve().parents[1]


def result(throughput: float, first: float, **other: Any) -> dict[str, Any]:
    times = dict.fromkeys(("mean_ttft_ms", "mean_tpot_ms", "p99_itl_ms"), 10.0)
    counts = {"completed": 2, "failed": 0, "total_input_tokens": 8, "total_output_tokens": 6, "trusted": True}
    figures = {"output_throughput": throughput, "p99_ttft_ms": first, "server_cpu_seconds": 0.003}
    return {**times, **counts, **figures, **other}


def test_the_median_of_neighbours_decides() -> None:
    """The machine is three times slower in one round, for both."""
    contest = ServerContest(
        "x", [result(310, 30), result(100, 90), result(350, 99)], [result(100, 99), result(33, 300), result(100, 100)]
    )
    assert contest.ratios("output_throughput") == pytest.approx([3.1, 3.03, 3.5], abs=0.01)
    assert contest.ratios("p99_ttft_ms") == pytest.approx([0.303, 0.3, 0.99], abs=0.001)
    assert contest.reached and all(contest.meets(figure) for figure in GOALS)
    rows = contest.lines()
    assert rows[2].split()[-6:] == ["3.03", "to", "3.50", ">=", "3", "met"] and rows[3].split()[-1] == "met"
    assert "ours: 500 us of CPU" in rows[7]
    assert json.loads(json.dumps(contest.as_json()))["peer"][1]["p99_ttft_ms"] == 300


@pytest.mark.parametrize(("throughput", "first"), [(299, 30), (310, 34)])
def test_each_goal_alone_can_be_missed(throughput: float, first: float) -> None:
    contest = ServerContest("x", [result(throughput, first)], [result(100, 100)])
    assert not contest.reached
    assert sum(line.endswith("MISSED") for line in contest.lines()) == 1


def test_other_work_and_doubtful_runs_are_told() -> None:
    other = ServerContest("x", [result(1, 1)], [result(1, 1, completed=1)])
    assert not other.reached and "not the same work in round 1" in other.lines()[0]
    doubtful = ServerContest("x", [result(1, 1, trusted=False, distrust_reasons=["late"])], [result(1, 1)])
    assert "ours: no verdict in 1 of 1 runs: late" in doubtful.lines()


def test_a_resting_server_takes_no_time_and_is_there_again_after() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        served = Served("http://nowhere", spinning.pid)
        assert list(served.processes()) == [spinning.pid]
        with served.resting():
            before = cpu_seconds(spinning.pid)
            time.sleep(0.1)
            assert cpu_seconds(spinning.pid) - before < 0.03
        deadline = time.monotonic() + 10
        while cpu_seconds(spinning.pid) - before < 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(spinning.pid, 9)
        spinning.wait()


def test_a_server_or_client_that_fails_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match=r"ended with code 3.*\n.*last words"), running(command, {}):
        pass
    with pytest.raises(RuntimeError, match="ended with code 3:\nlast words"):
        run_client(command)


def test_metrics_are_summed_over_labels(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text('# HELP a b\na{x="1"} 2.0\na{x="2"} 3e1\nab 7\nc 1\n')
    with running([sys.executable, "-c", SERVER, str(tmp_path)], {}) as served:
        assert served.metric("a") == 32.0 and served.metric("c") == 1.0 and served.metric("nothing") == 0.0


def test_a_wrong_word_is_refused_at_once() -> None:
    command = [sys.executable, str(ROOT / "tools" / "compare_servers.py"), "--rounds", "0"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "argument --rounds: must be at least 1" in wrong.stderr


SERVER = """
import argparse, functools, http.server, os
parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--port", type=int)
options = parser.parse_args()
open(os.path.join(options.folder, "health"), "w").close()
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=options.folder)
http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler).serve_forever()
"""
"""Answers ``/health`` and ``/metrics`` from files."""
