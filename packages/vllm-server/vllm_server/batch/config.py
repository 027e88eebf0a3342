"""The settings of ``vllm run-batch``; its flags are made from these fields."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vllm_engine.config import EngineConfig
from vllm_engine.config.engine_args import build, check_options
from vllm_engine.config.groups.types import Port, Positive
from vllm_engine.config.old_options import OldOptions
from vllm_engine.config.option import option
from vllm_engine.config.support import refuse_unsupported, tell_no_effect
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server.batch.url import check_url, is_url
from vllm_server.config import ServerConfig
from vllm_server.relations import check_template_variables

logger = get_logger(__name__)

AS_SERVED = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "response_role",
    "return_tokens_as_token_ids",
    "enable_prompt_tokens_details",
    "max_log_len",
)
"""Settings that mean what they mean for ``vllm serve``, which declares them."""


def _as_served(name: str) -> Any:
    field = ServerConfig.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Which requests to run, and where the answers go."""

    GROUP: ClassVar[str] = "RunBatch"

    input_file: str | None = option(
        None,
        help="file or HTTP(S) URL with one request in each line, as JSON",
        short=("-i",),
        metavar="FILE",
        common=True,
        secret=True,
    )
    output_file: str | None = option(
        None,
        help="file for the answers, one in each line, in the same order; or the URL to send them to by PUT",
        short=("-o",),
        metavar="FILE",
        common=True,
        secret=True,
    )
    output_tmp_dir: str | None = option(
        None,
        help="folder for what is kept until the end: answers before all are there, an input that came from a URL; "
        "unset: that of the output, for URLs a private one for temporary files",
        metavar="FOLDER",
    )
    max_inflight: Positive | None = option(
        None, help="most requests that run at once; unset: twice --max-num-seqs", metavar="INT"
    )
    chat_template: str | None = _as_served("chat_template")
    chat_template_content_format: Literal["auto", "string", "openai"] = _as_served("chat_template_content_format")
    default_chat_template_kwargs: dict[str, Any] | None = _as_served("default_chat_template_kwargs")  # noqa: RUF009
    response_role: str = _as_served("response_role")
    return_tokens_as_token_ids: bool = _as_served("return_tokens_as_token_ids")
    enable_prompt_tokens_details: bool = _as_served("enable_prompt_tokens_details")
    max_log_len: Annotated[int, Meta(ge=0)] | None = _as_served("max_log_len")
    enable_metrics: bool = option(False, help="serve metrics for Prometheus while the batch runs")
    host: str | None = option(None, help="address of the metrics, with --enable-metrics; unset: that of --url")
    url: str = option("0.0.0.0", help="address of the metrics, with --enable-metrics", metavar="HOST")
    port: Port = option(8000, help="TCP port of the metrics, with --enable-metrics; 0 picks a free one")


BATCH_CONFIGS: tuple[type[Any], ...] = (BatchConfig, EngineConfig, OldOptions)
"""What may stand on the command line and in the YAML file of ``vllm run-batch``."""


def create_batch_config(options: dict[str, Any]) -> BatchConfig:
    """A checked ``BatchConfig``.

    Raises:
        ConfigError: naming a setting that has a wrong type or range, or a file that is not named.
    """
    config: BatchConfig = build(BatchConfig, check_options(BatchConfig, options))
    refuse_unsupported(config)
    tell_no_effect(config)
    check_template_variables(config.default_chat_template_kwargs)
    for name in ("input_file", "output_file"):
        value = getattr(config, name)
        if not value:
            raise ConfigError(f"{name} must be the path of a file or a URL; it is not given", field=name)
        if is_url(value):
            check_url(value, name)
    for name in ("host", "url", "port"):
        if name in options and not config.enable_metrics:
            logger.warning("%s has no effect without --enable-metrics", name)
    return config


def server_config(config: BatchConfig) -> ServerConfig:
    """The settings of the routes that answer the requests of a batch."""
    return ServerConfig(disable_fastapi_docs=True, **{name: getattr(config, name) for name in AS_SERVED})


_OF_THE_MODEL = (
    "model",
    "revision",
    "tokenizer",
    "tokenizer_revision",
    "dtype",
    "quantization",
    "logprobs_mode",
    "hf_overrides",
    "served_model_name",
    "generation_config",
    "override_generation_config",
)
_OF_THE_ANSWERS = tuple(name for name in AS_SERVED if name not in ("chat_template", "max_log_len"))


def answers_digest(engine_config: EngineConfig, config: BatchConfig, chat_template: str | None) -> str:
    """SHA-256 of the settings that shape an answer; with others, the answers so far and the next ones do not match.

    Limits and places are not among them: whoever ran out of memory goes on with less.
    """
    model = {name: getattr(engine_config.model, name) for name in _OF_THE_MODEL}
    own = {name: getattr(config, name) for name in _OF_THE_ANSWERS}
    shaping = {**model, **own, "chat_template": chat_template}
    return hashlib.sha256(msgspec.json.encode(shaping, enc_hook=str, order="sorted")).hexdigest()
