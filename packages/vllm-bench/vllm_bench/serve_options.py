"""The options of ``vllm bench serve``, by what they are about."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from functools import partial
from pathlib import Path

from vllm_bench import option_types
from vllm_bench.endpoints import ENDPOINTS
from vllm_bench.workload.dataset import add_dataset_arguments
from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

METRICS = ["ttft", "tpot", "itl", "e2el"]
"""Times that ``--percentile-metrics`` knows."""

_COMMON = {
    *("--base-url", "--backend", "--model", "--request-rate", "--max-concurrency", "--num-prompts", "--duration"),
    *("--dataset-name", "--input-len", "--output-len", "--ignore-eos", "--save-result"),
}
"""What the short page of ``--help`` shows."""

_SAMPLING = {
    "--temperature": (float, "sampling temperature"),
    "--top-p": (float, "nucleus sampling"),
    "--top-k": (int, "sampling from the k likeliest tokens"),
    "--min-p": (float, "least probability beside the likeliest token's"),
    "--frequency-penalty": (float, "penalty for each time that a token has come"),
    "--presence-penalty": (float, "penalty for a token that has come"),
    "--repetition-penalty": (float, "factor for a token that has come"),
}
"""Option -> type and meaning; the field of a request's body has the option's name."""


def add_arguments(parser: ArgumentParser) -> None:
    """All of them, in groups."""
    _add_server(parser.add_argument_group("Server", "which one, and through which API"))
    _add_load(parser.add_argument_group("Load", "how many requests, and when"))
    _add_workload(parser.add_argument_group("Workload", "what the requests hold"))
    _add_sampling(parser.add_argument_group("Sampling", "fields of every request"))
    _add_result(parser.add_argument_group("Result", "what is reported, and where it goes"))
    for action in parser._actions:
        if _COMMON.intersection(action.option_strings):
            action.common = True  # type: ignore[attr-defined]


def check(options: Namespace) -> None:
    """Raise ``CommandError`` (exit code 2) for options that do not go together."""
    if options.duration is not None and options.max_concurrency is None and options.request_rate == float("inf"):
        raise CommandError("--duration needs --request-rate or --max-concurrency: nothing else holds back", exit_code=2)


def body_fields(options: Namespace) -> dict[str, object]:
    """The fields of every request's body that the options name."""
    names = [option.removeprefix("--").replace("-", "_") for option in _SAMPLING]
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {**fields, **({"ignore_eos": True} if options.ignore_eos else {}), **options.extra_body}


def _add_server(group: _ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="address of the server (default: of --host and --port)")
    group.add_argument("--host", default="127.0.0.1", help="its host (default: %(default)s)")
    group.add_argument("--port", type=positive_integer, default=8000, help="its port (default: %(default)s)")
    group.add_argument(
        "--backend", choices=tuple(ENDPOINTS), default="openai", help="API to ask through (default: %(default)s)"
    )
    group.add_argument("--endpoint", metavar="PATH", help="path of that API (default: the backend's own)")
    group.add_argument("--model", metavar="NAME", help="model to ask (default: the first that the server lists)")
    group.add_argument(
        "--served-model-name", metavar="NAME", help="its name in requests, where that is another (default: --model)"
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="key of the server (default: $VLLM_API_KEY, else $OPENAI_API_KEY)"
    )


def _add_load(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--request-rate",
        type=option_types.rate,
        default=float("inf"),
        metavar="RPS",
        help="requests per second, sent whatever became of those before; inf: all at once (default: %(default)s)",
    )
    group.add_argument(
        "--burstiness",
        type=option_types.rate,
        default=1.0,
        metavar="B",
        help="of a finite rate: 1 is Poisson, less has bursts, more is steadier, inf constant (default: %(default)s)",
    )
    group.add_argument(
        "--max-concurrency",
        "--num-clients",
        type=positive_integer,
        metavar="N",
        help="no more requests at a time; with an infinite rate, one begins when one ends (default: no limit)",
    )
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--num-prompts", type=positive_integer, default=1000, metavar="N", help="requests to send (default: 1000)"
    )
    length.add_argument(
        "--duration",
        type=option_types.positive_number,
        metavar="SECONDS",
        help="send new requests for so long, then finish them",
    )
    group.add_argument(
        "--num-warmups",
        type=option_types.count,
        default=0,
        metavar="N",
        help="requests before the clock starts, as long as the run's first and with other prompts (default: 0)",
    )


def _add_workload(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--seed", type=option_types.count, default=0, metavar="N", help="makes the workload (default: %(default)s)"
    )
    group.add_argument("--tokenizer", type=Path, metavar="PATH", help="the model's tokenizer.json, or its folder")
    group.add_argument(
        "--input-len", type=positive_integer, metavar="TOKENS", help="of a prompt (default: the dataset's)"
    )
    group.add_argument(
        "--output-len", type=positive_integer, metavar="TOKENS", help="most of an answer (default: the dataset's)"
    )
    add_dataset_arguments(group)


def _add_sampling(group: _ArgumentGroup) -> None:
    group.add_argument("--ignore-eos", action="store_true", help="always generate the whole output length")
    for option, (kind, meaning) in _SAMPLING.items():
        group.add_argument(option, type=kind, metavar="X", help=f"{meaning} (default: the server's)")
    group.add_argument(
        "--extra-body", type=option_types.json_object, default={}, metavar="JSON", help="more fields (default: none)"
    )


def _add_result(group: _ArgumentGroup) -> None:
    group.add_argument("--label", metavar="TEXT", help="name of this run (default: the backend)")
    group.add_argument(
        "--percentile-metrics",
        type=partial(option_types.some_of, METRICS),
        default=METRICS[:3],
        metavar="M,M",
        help=f"rows of the table, of {','.join(METRICS)} (default: {','.join(METRICS[:3])}); a saved result has all",
    )
    group.add_argument(
        "--metric-percentiles",
        type=option_types.percents,
        default=[99.0],
        metavar="P,P",
        help="percentiles to report (default: 99)",
    )
    group.add_argument("--save-result", action="store_true", help="write the figures to a JSON file")
    group.add_argument(
        "--result-dir", type=Path, default=Path(), metavar="DIR", help="folder of that file (default: .)"
    )
    group.add_argument("--result-filename", metavar="FILE", help="its name (default: made of load, model and date)")
