"""What the operator sees once the server is ready: where it is, and a line to try it with."""

import json
import os
import shlex
import socket
import sys
from typing import TYPE_CHECKING, Any

from vllm_engine.config import EngineConfig
from vllm_engine.logging import get_logger
from vllm_server.config import ServerConfig, served_names
from vllm_server.running.sockets import url_of

if TYPE_CHECKING:
    from vllm_server.context import ServerContext

logger = get_logger(__name__)


def example_of(context: "ServerContext") -> tuple[str, dict[str, Any]]:
    """A request that the server can answer: its route, and the fields that say what is asked."""
    tokenizer = context.llm.tokenizer
    if tokenizer is not None and (context.chat_template is not None or tokenizer.chat_templates):
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}
    return "/v1/completions", {"prompt": "Hello" if tokenizer is not None else [1]}


def announce(
    example: tuple[str, dict[str, Any]],
    config: ServerConfig,
    engine_config: EngineConfig,
    listener: socket.socket,
    seconds: float,
) -> None:
    """Print the URL, the start-up time in ``seconds`` and a ``curl`` command to standard output.

    ``example`` is what ``example_of`` gives.
    """
    url = url_of(listener, "https" if config.ssl_certfile else "http")
    name = served_names(engine_config)[0]
    route, body = example
    data = shlex.quote(json.dumps({"model": name, **body, "max_tokens": 32}))
    where = f"unix:{listener.getsockname()}" if config.uds is not None else url
    lines = [f"ready after {seconds:.2f} s: {name} at {where}"]
    options = "" if config.uds is None else f" --unix-socket {shlex.quote(listener.getsockname())}"
    if config.ssl_certfile:
        # -k: this machine need not trust the certificate, and it hardly names this machine's own address.
        options += " -k" if config.ssl_cert_reqs < 2 else " -k --cert CLIENT.pem"
    if config.api_key:
        options += ' -H "Authorization: Bearer $VLLM_API_KEY"'
    lines.append(f"try: curl {url}{route}{options} -H 'Content-Type: application/json' -d {data}")
    try:
        for line in lines:
            print(line, flush=True)
    except OSError as error:  # its reader has gone, or the disk is full: no reason to end
        logger.warning("standard output takes nothing (%s): %s", error.strerror, lines[0])
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
