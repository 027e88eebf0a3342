"""What a benchmark must know of the ``vllm serve`` command that it launches: how to reach the server and ask it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_cli.command import CommandError
from vllm_cli.option_parser import OptionParser
from vllm_cli.registry import missing

_WHEELS = ("vllm_server", "vllm_engine", "vllm_kernels")
_CLIENT_CERTIFICATE = 2
"""``--ssl-cert-reqs``: nobody is answered without one."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The server as a client sees it."""

    tls: bool
    api_key: str | None
    """One that it accepts; None: that of ``VLLM_API_KEY``, if any."""
    has_tokenizer: bool
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """All settings by name, as they were written, secrets included."""


def read_serve_settings(arguments: Sequence[str], benchmark: str = "bench startup") -> ServeSettings:
    """Read what follows ``vllm serve`` as the server does, its ``--config`` included; ``benchmark`` wants to know.

    A mistake ends the program as it ends ``vllm serve``: one line, exit code 2.

    Raises:
        CommandError: (exit code 2) the server is not installed, or an option is the benchmark's to choose.
    """
    try:
        from vllm_server.command_line import Settings, read_settings
        from vllm_server.config import CONFIGS
        from vllm_server.serve import add_arguments
    except ModuleNotFoundError as error:
        if error.name in _WHEELS:
            raise missing(benchmark, "serve") from error
        raise
    from vllm_engine.errors import ConfigError

    parser = OptionParser(prog="vllm serve")
    add_arguments(parser)
    try:
        settings: Settings = read_settings(parser.parse_args(arguments), CONFIGS)
    except ConfigError as error:
        raise CommandError(f"vllm serve: {error}", exit_code=2) from error
    server: dict[str, Any] = settings.server
    for name in ("host", "port", "uds"):
        if name in server:
            raise CommandError(f"--{name}: the benchmark chooses the address itself", exit_code=2)
    if str(server.get("ssl_cert_reqs", 0)) == str(_CLIENT_CERTIFICATE):
        raise CommandError("--ssl-cert-reqs 2: the benchmark has no client certificate to show", exit_code=2)
    keys = server.get("api_key") or [None]
    skipped = str(settings.engine.get("skip_tokenizer_init", False)).lower() in ("true", "1")
    return ServeSettings(
        tls=bool(server.get("ssl_certfile")),
        api_key=keys if isinstance(keys, str) else keys[0],
        has_tokenizer=not skipped,
        given={**settings.engine, **server},
    )
