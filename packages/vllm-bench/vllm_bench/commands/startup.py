"""``vllm bench startup``: how fast ``vllm serve`` starts on this machine."""

import signal
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

SUMMARY = "Start `vllm serve` some times and report the seconds to ready and to the first token"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm bench startup``."""
    parser.usage = (
        "vllm bench startup [-h] [--num-iters N] [--timeout SECONDS] [--output-json FILE] MODEL [SERVE OPTIONS]"
    )
    parser.add_argument(
        "--num-iters", type=positive_integer, default=3, metavar="N", help="starts (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=positive_integer,
        default=600,
        metavar="SECONDS",
        help="give up a start (default: %(default)s)",
    )
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="also write the figures to a file")
    parser.add_argument("model", metavar="MODEL", help="model to serve")
    parser.add_argument(
        "serve_options", nargs=REMAINDER, metavar="SERVE OPTIONS", help="whatever follows is given to `vllm serve`"
    )


def run(options: Namespace) -> int:
    """Measure and report; returns 0."""
    for option in options.serve_options:
        name = option.partition("=")[0]
        if name in ("--num-iters", "--timeout", "--output-json"):
            raise CommandError(f"{name} belongs before MODEL; what follows it is for `vllm serve`", exit_code=2)

    from vllm_bench.offline.serve_settings import read_serve_settings
    from vllm_bench.result.save import check_place, save
    from vllm_bench.server_process import free_port
    from vllm_bench.startup import measure_start, startup_figures, startup_lines
    from vllm_bench.startup_probe import StartupProbe

    given = [options.model, *options.serve_options]
    settings = read_serve_settings(given)
    if options.output_json is not None:
        check_place(options.output_json)

    # The server runs in a session of its own: were this process simply ended, it would stay behind.
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        timings = []
        for number in range(options.num_iters):
            port = free_port()
            probe = StartupProbe(port, tls=settings.tls, api_key=settings.api_key, has_tokenizer=settings.has_tokenizer)
            address = ["--host", "127.0.0.1", "--port", str(port)]
            command = [sys.executable, "-m", "vllm_cli", "serve", *given, *address]
            timing = measure_start(command, probe, timeout=options.timeout)
            ready, first_token = timing.healthy_seconds, timing.first_token_seconds
            print(f"start {number + 1}: ready {ready:.2f} s, first token {first_token:.2f} s", flush=True)
            timings.append(timing)
    finally:
        signal.signal(signal.SIGTERM, previous)

    figures = startup_figures(timings)
    print("\n" + "\n".join(startup_lines(figures)))
    if options.output_json is not None:
        from vllm_bench.result.fingerprint import engine_fingerprint, words_without_secrets

        words = words_without_secrets(options.serve_options, settings.given)
        content = {"model_id": options.model, "serve_options": words, **figures}
        content["fingerprint"] = engine_fingerprint(options, settings.given, None)
        save(content, options.output_json)
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
