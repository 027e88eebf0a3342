"""What the operator sees once the server is ready: where it is, and a line to try it with."""

import json
import shlex
import socket
from typing import TYPE_CHECKING, Any

from vllm_server.running.sockets import url_of

if TYPE_CHECKING:
    from vllm_server.context import ServerContext


def announce(context: "ServerContext", listener: socket.socket, seconds: float) -> None:
    """Print the URL, the start-up time in ``seconds`` and a ``curl`` command to standard output."""
    config = context.config
    url = url_of(listener, "https" if config.ssl_certfile else "http")
    name = context.model_names[0]
    tokenizer = context.llm.tokenizer
    body: dict[str, Any] = {"prompt": "Hello" if tokenizer is not None else [1]}
    route = "/v1/completions"
    if tokenizer is not None and (context.chat_template is not None or tokenizer.chat_templates):
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        route = "/v1/chat/completions"
    data = shlex.quote(json.dumps({"model": name, **body, "max_tokens": 32}))
    where = f"unix:{listener.getsockname()}" if config.uds is not None else url
    print(f"ready after {seconds:.2f} s: {name} at {where}", flush=True)
    options = "" if config.uds is None else f" --unix-socket {shlex.quote(listener.getsockname())}"
    if config.ssl_certfile:
        # -k: this machine need not trust the certificate, and it hardly names this machine's own address.
        options += " -k" if config.ssl_cert_reqs < 2 else " -k --cert CLIENT.pem"
    if config.api_key:
        options += ' -H "Authorization: Bearer $VLLM_API_KEY"'
    print(f"try: curl {url}{route}{options} -H 'Content-Type: application/json' -d {data}", flush=True)
