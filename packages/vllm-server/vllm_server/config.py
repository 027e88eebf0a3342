"""The settings of the HTTP server; the ``vllm serve`` flags are made from these fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from vllm_engine.config import EngineConfig
from vllm_engine.config.engine_args import build, check_options
from vllm_engine.config.groups.reasons import NO_LORA
from vllm_engine.config.groups.types import NonNegative, Positive
from vllm_engine.config.old_options import OldOptions, old, translate
from vllm_engine.config.option import option
from vllm_engine.config.support import refuse_unsupported, tell_no_effect
from vllm_engine.errors import ConfigError
from vllm_server.api_keys import keys_from_environment, keys_from_file
from vllm_server.relations import check_server_relations

DEFAULT_HOST = "127.0.0.1"

_PlainPath = Annotated[str, Meta(pattern=r"^/[^\s?#,]*$", description="a path such as /health")]
_NO_TOOLS = "this version of the server does not parse tool calls"
_ONE_MACHINE = "this version has server and engine on one machine"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How the server listens, answers and stops."""

    GROUP: ClassVar[str] = "Frontend"

    host: str | None = option(
        None, help="address to listen on; unset: 127.0.0.1; 0.0.0.0 takes calls from other machines", common=True
    )
    port: Annotated[int, Meta(ge=0, le=65535)] = option(
        8000, help="TCP port to listen on; 0 picks a free one", common=True
    )
    uds: str | None = option(None, help="listen on a Unix domain socket at this path, and on no port", metavar="PATH")
    root_path: (
        Annotated[str, Meta(pattern=r"^(/[^/\s]+)*$", description="a path such as /llm, without a slash at its end")]
        | None
    ) = option(None, help="path prefix under which a proxy publishes the server, such as /llm")
    api_key: list[str] | None = option(
        None,
        help="keys of which requests must carry one; unset: VLLM_API_KEY if that is set, else requests need none",
        metavar="KEY",
        extend=True,
        secret=True,
        common=True,
    )
    api_key_file: str | None = option(
        None, help="file with more such keys, one in a line; lines that begin with # are none", metavar="FILE"
    )
    admin_api_key: list[str] | None = option(
        None,
        help="keys that open the routes for operators too, which other keys then do not; unset: VLLM_ADMIN_API_KEY if "
        "that is set, else there is no such difference",
        metavar="KEY",
        extend=True,
        secret=True,
    )
    max_concurrency_per_key: NonNegative = option(
        0, help="most requests of one API key that run or wait at once; more are answered with 429; 0: no limit"
    )
    max_tokens_per_minute_per_key: NonNegative = option(
        0,
        help="tokens of prompts and answers that one API key may use in a minute; then requests are answered with 429; "
        "0: no limit",
    )
    api_server_count: Positive = option(
        1, help="processes that serve the port, with one engine; each may use a core", short=("-asc",)
    )
    headless: bool = option(False, help="run engines only, for a server on another machine", unsupported=_ONE_MACHINE)
    allow_credentials: bool = option(
        False, help="CORS: let browsers send credentials, to pages of origins that are named"
    )
    allowed_origins: list[str] = option(["*"], help="CORS: origins whose pages may call", json=True)
    allowed_methods: list[str] = option(["*"], help="CORS: methods that may be called", json=True)
    allowed_headers: list[str] = option(["*"], help="CORS: headers that requests may carry", json=True)
    ssl_keyfile: str | None = option(
        None, help="PEM file with the private key for TLS; unset: it stands in the certificate's file"
    )
    ssl_certfile: str | None = option(None, help="PEM file with the certificate for TLS, and those that lead to its CA")
    ssl_ca_certs: str | None = option(None, help="PEM file with the authorities of client certificates")
    enable_ssl_refresh: bool = option(False, help="take up certificate files when they change")
    ssl_cert_reqs: Literal[0, 1, 2] = option(0, help="client certificates: 0 not asked for, 1 optional, 2 required")
    ssl_ciphers: str | None = option(
        None, help="ciphers of TLS 1.2 that clients may choose, as OpenSSL lists them; TLS 1.3 has its own"
    )
    middleware: list[str] = option(
        [],
        help="import path of a class or coroutine function that sees every request; may be repeated, the last sees it "
        "first",
        append=True,
    )
    enable_request_id_headers: bool = option(
        False,
        help="send X-Request-Id with every answer",
        no_effect="the server always sends it",
    )
    chat_template: str | None = option(
        None, help="chat template that wins over the model's: a file, or the Jinja text", common=True
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = option(
        "auto",
        help="how message content reaches the template: as text, as a list of parts (openai), or as it reads it (auto)",
    )
    default_chat_template_kwargs: dict[str, Any] | None = option(
        None,
        help="variables of the chat template, such as enable_thinking; those of a request's chat_template_kwargs win",
    )
    trust_request_chat_template: bool = option(
        False, help="render chat templates that come with requests, each within limits and in a process of its own"
    )
    response_role: str = option("assistant", help="role named in the answers of the chat API")
    enable_auto_tool_choice: bool = option(False, help="let the model decide which tool to call", unsupported=_NO_TOOLS)
    tool_call_parser: str | None = option(
        None, help="parser that finds tool calls in an answer", unsupported=_NO_TOOLS, metavar="PARSER"
    )
    tool_parser_plugin: str = option("", help="Python file that registers more parsers", unsupported=_NO_TOOLS)
    lora_modules: list[str] | None = option(
        None, help="adapters to serve, as name=path or JSON", unsupported=NO_LORA, metavar="ADAPTER"
    )
    return_tokens_as_token_ids: bool = option(
        False, help="write tokens of logprobs as token_id:<id>, unless a request says otherwise"
    )
    enable_prompt_tokens_details: bool = option(
        False, help="tell in usage how many tokens of a prompt came out of the prefix cache"
    )
    enable_force_include_usage: bool = option(
        False, help="tell the token counts at the end of every stream, whether it is asked for or not"
    )
    enable_server_load_tracking: bool = option(False, help="tell at GET /load how many requests run")
    enable_tokenizer_info_endpoint: bool = option(
        False, help="tell at GET /tokenizer_info the tokenizer's special tokens and chat template"
    )
    disable_fastapi_docs: bool = option(False, help="serve no /docs, /redoc and /openapi.json")
    enable_offline_docs: bool = option(
        False, help="serve a plain page at /docs, which fetches nothing from elsewhere, and no /redoc"
    )
    disable_frontend_multiprocessing: bool = option(
        False, help="run the engine core in a thread of the server's process (for debugging)"
    )
    h11_max_incomplete_event_size: Annotated[int, Meta(ge=1024)] = option(
        4 << 20, help="most bytes of a request before its body: its first line and its headers", metavar="BYTES"
    )
    h11_max_header_count: Positive = option(256, help="most headers of a request")
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = option(
        "info", help="lowest level that uvicorn logs"
    )
    disable_uvicorn_access_log: bool = option(False, help="no log line for each HTTP request")
    log_config_file: str | None = option(
        None,
        help="JSON file with a configuration of Python's logging, for server, engine and uvicorn",
        metavar="FILE",
    )
    disable_access_log_for_endpoints: list[_PlainPath] | None = option(
        None, help="paths whose requests have no log line, such as /health,/metrics", commas=True, metavar="PATH"
    )
    log_format: Literal["text", "json"] = option(
        "text", help="how a line of the log looks: a text, or a JSON object with the facts of requests as fields"
    )
    enable_log_outputs: bool = option(
        False, help="log what is generated for each request, too; needs enable_log_requests"
    )
    enable_log_deltas: bool = option(
        True, help="with enable_log_outputs, log each part of a stream and not only the whole"
    )
    log_error_stack: bool = option(False, help="log the stack of each error that a request is answered with")
    max_log_len: Annotated[int, Meta(ge=0)] | None = option(
        None, help="most characters, and most token ids, of a prompt or an output in the log of requests; unset: all"
    )


@dataclass(frozen=True, kw_only=True)
class OldServerOptions:
    """Settings of earlier versions, accepted with a warning."""

    GROUP: ClassVar[str] = "Deprecated"

    prompt_adapters: list[str] | None = old(None, "prompt adapters are gone; nothing replaces them", refused=True)


CONFIGS: tuple[type[Any], ...] = (ServerConfig, EngineConfig, OldServerOptions, OldOptions)
"""What may stand on the command line and in the YAML file of ``vllm serve``."""


def create_server_config(options: dict[str, Any]) -> ServerConfig:
    """A checked ``ServerConfig``; the environment has a say where ``options`` are silent.

    Raises ``ConfigError`` naming the setting that has a wrong type or range, or cannot hold beside another.
    """
    checked = check_options(ServerConfig, translate(options, OldServerOptions))
    if checked.get("api_key_file"):
        checked["api_key"] = [*(checked.get("api_key") or ()), *keys_from_file(checked["api_key_file"])]
    for name in ("api_key", "admin_api_key"):
        if not checked.get(name):
            checked[name] = keys_from_environment(name)
    config: ServerConfig = build(ServerConfig, checked)
    refuse_unsupported(config)
    check_server_relations(config)
    tell_no_effect(config)
    return config


def served_names(config: EngineConfig) -> list[str]:
    """Names under which the model answers; the first one is its main name."""
    return config.model.served_model_name or [config.model.model]


def load_chat_template(setting: str | None) -> str | None:
    """The text of the ``chat_template`` setting: the file's if there is such a file, else the setting if it is Jinja.

    Raises ``ConfigError`` when it is neither.
    """
    if setting is None:
        return None
    is_jinja = "{{" in setting or "{%" in setting
    path = Path(setting)
    try:
        if "\n" not in setting and path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if not is_jinja:
            raise ConfigError(f"chat_template: cannot read {setting}: {error}", field="chat_template") from error
    if is_jinja:
        return setting
    raise ConfigError(f"chat_template: no such file, and not a Jinja template: {setting[:200]}", field="chat_template")
