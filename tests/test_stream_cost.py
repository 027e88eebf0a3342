"""The tool that measures what a token of a stream costs the server."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "stream_cost.py"


@pytest.mark.parametrize(("micros", "verdict"), [((90.0, 100.0, 500.0), "met"), ((101.0, 101.0, 1.0), "MISSED")])
def test_the_median_of_the_runs_is_judged(micros: tuple[float, ...], verdict: str) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tools'); from stream_cost import Cost, table\n"
        f"cost = Cost('/v1/completions', list({micros}), [1.0, 2.0, 3.0]); print(*table([cost], 64), sep='\\n')"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    row = shown.splitlines()[-1].split()
    assert row[-2:] == [verdict, "2.0"] and float(row[1]) == sorted(micros)[1]
    assert float(row[-4]) == pytest.approx(sorted(micros)[1] / 10, abs=0.06)


FAKE = """
import argparse, os, subprocess, sys, time
sys.path.insert(0, "tools")
import stream_cost

engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

class Served:
    url = "http://nowhere"
    tokens = iter((100.0, 1100.0))
    processes = lambda self: {os.getpid(): "vllm serve", engine.pid: "python -m vllm_engine.core.process"}
    metric = lambda self, name: next(self.tokens)

def client(command):
    print(command[command.index("--backend") + 1])
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass

stream_cost.run_client = client
options = argparse.Namespace(num_prompts=1, streams=1, input_len=1, output_len=1)
print(*stream_cost._run(Served(), "/v1/chat/completions", 0, options))
engine.kill()
"""
"""Burns 0.2 s in the API process, which is this one, for 1,000 tokens."""


def test_the_time_of_each_process_is_divided_by_the_servers_tokens() -> None:
    shown = subprocess.run([sys.executable, "-c", FAKE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    backend, api, engine = shown.split()
    assert backend == "openai-chat"
    assert float(api) == pytest.approx(200, abs=30)
    assert float(engine) < 100  # its start, at most


def test_a_wrong_word_is_refused_at_once() -> None:
    wrong = subprocess.run([sys.executable, str(TOOL), "--streams", "0"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "argument --streams: must be at least 1" in wrong.stderr
