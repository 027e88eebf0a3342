"""What the operator sees once the server is ready: where it is, and a line to try it with."""

import json
import shlex
import socket
from typing import TYPE_CHECKING

from vllm_server.sockets import url_of

if TYPE_CHECKING:
    from vllm_server.context import ServerContext


def announce(context: "ServerContext", listener: socket.socket, seconds: float) -> None:
    """Print the URL, the start-up time in ``seconds`` and a ``curl`` command to standard output."""
    url = url_of(listener)
    name = context.model_names[0]
    tokenizer = context.llm.tokenizer
    if context.chat_template is not None or (tokenizer is not None and tokenizer.chat_templates):
        route, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}
    elif tokenizer is not None:
        route, body = "/v1/completions", {"prompt": "Hello"}
    else:
        route, body = "/v1/completions", {"prompt": [1]}
    data = shlex.quote(json.dumps({"model": name, **body, "max_tokens": 32}))
    print(f"ready after {seconds:.2f} s: {name} at {url}", flush=True)
    print(f"try: curl {url}{route} -H 'Content-Type: application/json' -d {data}", flush=True)
