"""The options of ``vllm bench serve``, by what they are about."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vllm_bench import endpoints, option_types
from vllm_bench.endpoints import ENDPOINTS
from vllm_bench.result.options import add_result_arguments, check_result_options
from vllm_bench.workload import adapters, trace_options
from vllm_bench.workload.dataset import add_dataset_arguments
from vllm_bench.workload.ramp_up import STRATEGIES, RampUp
from vllm_cli.command import CommandError
from vllm_cli.commands.connection import positive_integer

METRICS = ["ttft", "tpot", "itl", "e2el"]
"""Times that ``--percentile-metrics`` knows."""

_POOLING_METRICS = ["e2el"]
"""Those of answers that come in one piece."""

_COMMON = {
    *("--base-url", "--backend", "--model", "--request-rate", "--max-concurrency", "--num-prompts", "--duration"),
    *("--dataset-name", "--input-len", "--output-len", "--ignore-eos", "--save-result"),
}
"""What the short page of ``--help`` shows."""

_SAMPLING: dict[str, tuple[Callable[[str], object], str]] = {
    "--temperature": (float, "sampling temperature"),
    "--top-p": (float, "nucleus sampling"),
    "--top-k": (int, "sampling from the k likeliest tokens"),
    "--min-p": (float, "least probability beside the likeliest token's"),
    "--frequency-penalty": (float, "penalty for each time that a token has come"),
    "--presence-penalty": (float, "penalty for a token that has come"),
    "--repetition-penalty": (float, "factor for a token that has come"),
    "--logprobs": (option_types.count, "log probabilities of so many tokens beside each that is chosen"),
}
"""Option -> type and meaning; the field of a request's body has the option's name."""

_GENERATING_ONLY = (*_SAMPLING, "--ignore-eos", "--use-beam-search", "--whole-answers", "--output-len", "--goodput")
"""What has no meaning where no text is generated."""


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
    endpoint = endpoints.load(options.backend)
    if not endpoint.generates:
        for option in _GENERATING_ONLY:
            value = getattr(options, _field(option))
            if value is not None and value is not False:  # a temperature may be 0
                raise CommandError(f"{option}: --backend {options.backend} generates no text", exit_code=2)
        if options.percentile_metrics not in (None, _POOLING_METRICS):
            raise CommandError(f"--percentile-metrics: --backend {options.backend} has only e2el", exit_code=2)
    elif options.random_batch_size > 1 and options.dataset_name != "random-rerank":
        raise CommandError(f"--random-batch-size: --backend {options.backend} takes one prompt a time", exit_code=2)
    if options.chat_template_kwargs and not endpoint.takes_template:
        raise CommandError(f"--chat-template-kwargs: --backend {options.backend} uses no chat template", exit_code=2)
    if options.tokenizer is not None and options.skip_tokenizer_init:
        raise CommandError("--skip-tokenizer-init: there is a --tokenizer", exit_code=2)
    trace_options.check(options)
    adapters.check(options)
    check_result_options(options)
    scheduled = RampUp.of(options) is not None or options.request_rate != float("inf") or options.self_timed
    if options.duration is not None and options.max_concurrency is None and not scheduled:
        raise CommandError(
            "--duration needs --request-rate or --max-concurrency, or moments of another kind: nothing else holds back",
            exit_code=2,
        )


def body_fields(options: Namespace) -> dict[str, object]:
    """The fields of every request's body that the options name."""
    names = [_field(option) for option in _SAMPLING]
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    fields |= {name: True for name in ("ignore_eos", "use_beam_search") if getattr(options, name)}
    if options.whole_answers:
        fields["stream"] = False
    if options.chat_template_kwargs:
        fields["chat_template_kwargs"] = options.chat_template_kwargs
    return {**fields, **options.extra_body}


def shown_metrics(options: Namespace) -> list[str]:
    """The times that the table shows."""
    timed_inside = endpoints.load(options.backend).generates and not options.whole_answers
    default = METRICS[:3] if timed_inside else _POOLING_METRICS
    return list(options.percentile_metrics or default)


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


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
    group.add_argument(
        "--header",
        type=option_types.key_and_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="headers of every request; they win over our own (default: none)",
    )
    group.add_argument(
        "--insecure", action="store_true", help="trust any certificate of an https server, and any name in it"
    )
    group.add_argument(
        "--ready-check-timeout-sec",
        type=option_types.number_from_0,
        default=0,
        metavar="SECONDS",
        help="wait so long for a server that does not answer yet (default: %(default)s)",
    )
    group.add_argument(
        "--request-id-prefix",
        metavar="TEXT",
        help="send an X-Request-Id with each request: this, and the request's number (default: none is sent)",
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
        "--ramp-up-strategy",
        choices=STRATEGIES,
        help="instead of a rate that stays: one that grows over the run, by the same amount (linear) or by the same "
        "factor (exponential) in equal times, to the end of --num-prompts or --duration (default: none)",
    )
    group.add_argument(
        "--ramp-up-start-rps", type=option_types.number_from_0, metavar="RPS", help="the rate at the begin"
    )
    group.add_argument(
        "--ramp-up-end-rps", type=option_types.positive_number, metavar="RPS", help="the rate at the end"
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
        "--skip-tokenizer-init",
        action="store_true",
        help="count no tokens beforehand, not with the server's help either: a word for each wanted token",
    )
    group.add_argument(
        "--input-len",
        type=positive_integer,
        metavar="TOKENS",
        help="of a made-up prompt; prefix_repetition: of what follows the prefix (default: the dataset's)",
    )
    group.add_argument(
        "--output-len", type=positive_integer, metavar="TOKENS", help="most of an answer (default: the dataset's)"
    )
    adapters.add_arguments(group)
    add_dataset_arguments(group)


def _add_sampling(group: _ArgumentGroup) -> None:
    group.add_argument("--ignore-eos", action="store_true", help="always generate the whole output length")
    group.add_argument("--use-beam-search", action="store_true", help="ask for beam search, where the server has it")
    group.add_argument(
        "--whole-answers",
        action="store_true",
        help="ask for each answer in one piece instead of a stream; it has an end-to-end latency alone",
    )
    for option, (kind, meaning) in _SAMPLING.items():
        group.add_argument(option, type=kind, metavar="X", help=f"{meaning} (default: the server's)")
    group.add_argument(
        "--extra-body", type=option_types.json_object, default={}, metavar="JSON", help="more fields (default: none)"
    )
    group.add_argument(
        "--chat-template-kwargs",
        type=option_types.json_object,
        default={},
        metavar="JSON",
        help="what the model's chat template is given (default: nothing)",
    )


def _add_result(group: _ArgumentGroup) -> None:
    group.add_argument("--label", metavar="TEXT", help="name of this run (default: the backend)")
    group.add_argument(
        "--percentile-metrics",
        type=partial(option_types.some_of, METRICS),
        metavar="M,M",
        help=f"rows of the table, of {','.join(METRICS)} (default: {','.join(METRICS[:3])}, or e2el where no text is "
        "generated); a saved result has all",
    )
    group.add_argument(
        "--metric-percentiles",
        type=option_types.percents,
        default=[99.0],
        metavar="P,P",
        help="percentiles to report (default: 99)",
    )
    add_result_arguments(group)
