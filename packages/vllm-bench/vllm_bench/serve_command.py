"""``vllm bench serve``: how a running server answers under a steady load."""

import json
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

SUMMARY = "Load a running OpenAI-compatible server and report latencies and throughput"

_DEFAULT_NUM_PROMPTS = 100


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm bench serve``."""
    parser.add_argument(
        "--base-url", default="http://localhost:8000", help="address of the server (default: %(default)s)"
    )
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first that the server lists)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="key of the server (default: $VLLM_API_KEY, else $OPENAI_API_KEY)"
    )
    parser.add_argument(
        "--backend",
        choices=("openai", "openai-chat"),
        default="openai",
        help="/v1/completions or /v1/chat/completions (default: %(default)s)",
    )
    parser.add_argument(
        "--max-concurrency",
        "--num-clients",
        type=positive_integer,
        default=1,
        metavar="N",
        help="clients; each sends its next request when its last one has ended (default: %(default)s)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--num-prompts", type=positive_integer, metavar="N", help=f"requests to send (default: {_DEFAULT_NUM_PROMPTS})"
    )
    length.add_argument(
        "--duration", type=_positive_number, metavar="SECONDS", help="send new requests for so long, then finish them"
    )
    parser.add_argument(
        "--num-warmups", type=_count, default=0, metavar="N", help="requests before the clock starts (default: 0)"
    )
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="prompts, one a line, used in turn")
    parser.add_argument(
        "--output-len", type=positive_integer, default=128, metavar="TOKENS", help="max_tokens (default: %(default)s)"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="always generate the whole --output-len")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature (default: the server's)")
    parser.add_argument(
        "--metric-percentiles",
        type=_percents,
        default=[90.0, 99.0],
        metavar="P,P",
        help="percentiles to report (default: 90,99)",
    )
    parser.add_argument("--save-result", action="store_true", help="write the figures to a JSON file")
    parser.add_argument(
        "--result-dir", type=Path, default=Path(), metavar="DIR", help="folder of that file (default: .)"
    )
    parser.add_argument("--result-filename", metavar="FILE", help="name of that file (default: made of model and date)")


def run(options: Namespace) -> int:
    """Measure and report; 0 when every request was completed, else 1."""
    import asyncio

    prompts = _prompts(options.prompt_file)
    figures = asyncio.run(_measure(options, prompts))

    from vllm_bench.load_report import load_lines

    print("\n".join(load_lines(figures, options.metric_percentiles)))
    if options.save_result:
        print(f"\nsaved to {_save(figures, options)}")
    return 0 if figures["completed"] and not figures["failed"] else 1


async def _measure(options: Namespace, prompts: list[str] | None) -> dict[str, Any]:
    import httpx

    from vllm_bench.closed_loop import run_closed_loop
    from vllm_bench.load_report import load_figures
    from vllm_bench.streamed_request import ENDPOINTS, request_body
    from vllm_cli.client import Client, api_key_from_environment

    base_url = options.base_url.rstrip("/").removesuffix("/v1")
    with Client(f"{base_url}/v1", options.api_key) as probe:
        # Asked even when the model is named: a server that is not there is one clear line, not a hundred failures.
        listed = probe.first_model()
    model = options.model or listed

    sampling: dict[str, Any] = {"max_tokens": options.output_len}
    if options.ignore_eos:
        sampling["ignore_eos"] = True
    if options.temperature is not None:
        sampling["temperature"] = options.temperature

    def body_of(number: int) -> dict[str, Any]:
        prompt = prompts[number % len(prompts)] if prompts else f"{number}. Tell me about the number {number}."
        return request_body(options.backend, model, prompt, sampling)

    num_prompts = options.num_prompts
    if num_prompts is None and options.duration is None:
        num_prompts = _DEFAULT_NUM_PROMPTS
    key = options.api_key or api_key_from_environment()
    client = httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key.strip()}"} if key else {},
        timeout=httpx.Timeout(None, connect=10.0),
        # As many connections as clients: a request must never wait here for another's connection.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        # A proxy would be measured too.
        trust_env=False,
    )
    url = base_url + ENDPOINTS[options.backend]
    async with client:
        if options.num_warmups:
            await run_closed_loop(
                client, url, body_of, num_clients=options.max_concurrency, num_requests=options.num_warmups
            )
        result = await run_closed_loop(
            client,
            url,
            # Other prompts than the warm-up's, which the server may have cached.
            lambda number: body_of(options.num_warmups + number),
            num_clients=options.max_concurrency,
            num_requests=num_prompts,
            seconds=options.duration,
        )
    header = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": options.backend,
        "model_id": model,
        "num_prompts": len(result.timings),
        "max_concurrency": options.max_concurrency,
        "max_tokens": options.output_len,
    }
    return header | load_figures(result, options.metric_percentiles)


def _prompts(file: Path | None) -> list[str] | None:
    if file is None:
        return None
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--prompt-file {file}: {error}", exit_code=2) from error
    if not lines:
        raise CommandError(f"--prompt-file {file} holds no prompt", exit_code=2)
    return lines


def _save(figures: dict[str, Any], options: Namespace) -> Path:
    model = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in str(figures["model_id"]))
    name = options.result_filename or f"serve-{model}-{options.max_concurrency}-clients-{figures['date']}.json"
    path: Path = options.result_dir / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the result cannot be saved: {error}") from error
    return path


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _count(text: str) -> int:
    return 0 if text == "0" else positive_integer(text)


def _percents(text: str) -> list[float]:
    try:
        percents = [float(part) for part in text.split(",")]
    except ValueError:
        percents = []
    if not percents or not all(0 <= percent <= 100 for percent in percents):
        raise ArgumentTypeError(f"{text!r} is not a list of percentages such as 50,90,99")
    return percents
