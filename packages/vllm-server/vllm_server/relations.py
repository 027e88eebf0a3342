"""Settings of the server that must fit together, checked without touching a file."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server.api_keys import check_keys
from vllm_server.template_variables import may_be_chosen

if TYPE_CHECKING:
    from vllm_engine.config import EngineConfig
    from vllm_server.config import ServerConfig

logger = get_logger(__name__)

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method or the name of a header, by the grammar of HTTP; ``*`` is one too."""


def check_server_relations(config: "ServerConfig") -> None:
    """Raise ``ConfigError`` for the first setting that cannot hold beside the others."""
    check_keys(config.api_key or ())
    check_keys(config.admin_api_key or (), "admin_api_key")
    if not set(config.api_key or ()).isdisjoint(config.admin_api_key or ()):
        raise ConfigError("admin_api_key: api_key has one of its keys, too; a key has one scope", field="admin_api_key")
    for name in ("max_concurrency_per_key", "max_tokens_per_minute_per_key"):
        if getattr(config, name) and not config.api_key:
            raise ConfigError(f"{name} needs api_key: without keys, nobody is told from another", field=name)
    if config.enable_offline_docs and config.disable_fastapi_docs:
        raise ConfigError(
            "enable_offline_docs and disable_fastapi_docs exclude each other", field="enable_offline_docs"
        )
    if config.uds is not None:
        for name in ("host", "port"):
            if getattr(config, name) != getattr(type(config), name):
                raise ConfigError(f"{name} and uds exclude each other: the server listens in one place", field=name)
    if config.api_server_count > 1 and config.disable_frontend_multiprocessing:
        raise ConfigError(
            "api_server_count above 1 needs the engine in a process of its own, not disable_frontend_multiprocessing",
            field="api_server_count",
        )
    check_template_variables(config.default_chat_template_kwargs)
    _check_cors(config)
    _check_tls(config)


def check_template_variables(defaults: Mapping[str, Any] | None) -> None:
    """Raise ``ConfigError`` for a variable of ``default_chat_template_kwargs`` that is not for anybody to choose."""
    for name in defaults or {}:
        if not may_be_chosen(name):
            field = "default_chat_template_kwargs"
            raise ConfigError(f"{field} cannot set {name!r}: the server itself hands it to the template", field=field)


def check_relations_to_engine(server: "ServerConfig", engine: "EngineConfig") -> None:
    """Raise ``ConfigError`` for a setting of the server that cannot hold beside the engine's."""
    if server.enable_log_outputs and not engine.async_engine.enable_log_requests:
        raise ConfigError("enable_log_outputs needs enable_log_requests", field="enable_log_outputs")


def _check_cors(config: "ServerConfig") -> None:
    for origin in config.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"allowed_origins: {origin!r} matches no browser; an origin is * or a scheme and a host in lower case, "
                "without a path or a slash at its end, such as https://example.org:8443",
                field="allowed_origins",
            )
    for name in ("allowed_methods", "allowed_headers"):
        for word in getattr(config, name):
            if not _TOKEN.fullmatch(word):
                raise ConfigError(f"{name}: {word!r} cannot be a name in HTTP", field=name)
    if config.allow_credentials and "*" in config.allowed_origins:
        raise ConfigError(
            "allow_credentials with allowed_origins '*' would let every page in the world act as the user; "
            "name the origins",
            field="allow_credentials",
        )


def _check_tls(config: "ServerConfig") -> None:
    if config.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh"):
            if getattr(config, name):
                raise ConfigError(f"{name} needs ssl_certfile: without a certificate there is no TLS", field=name)
    if config.ssl_cert_reqs and config.ssl_ca_certs is None:
        raise ConfigError(
            f"ssl_cert_reqs={config.ssl_cert_reqs} needs ssl_ca_certs: the authorities whose certificates are good",
            field="ssl_cert_reqs",
        )
    if config.ssl_ca_certs is not None and not config.ssl_cert_reqs:
        logger.warning("ssl_ca_certs has no effect while ssl_cert_reqs=0: no client is asked for a certificate")
