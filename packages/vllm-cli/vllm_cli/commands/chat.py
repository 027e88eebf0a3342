"""``vllm chat``: talk to the model of a running server."""

from argparse import ArgumentParser, Namespace

from vllm_cli.command import Command
from vllm_cli.commands.connection import add_connection_arguments


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm chat``."""
    add_connection_arguments(parser)
    parser.add_argument("--system-prompt", metavar="TEXT", help="a system message to begin the conversation with")
    parser.add_argument("-q", "--quick", metavar="MESSAGE", help="send one message, print the answer and end")


def run(options: Namespace) -> int:
    """One answer with ``--quick``, else a conversation until Ctrl-D; returns the exit code."""
    # httpx costs 0.1 s, which `vllm chat --help` need not pay.
    from vllm_cli import repl
    from vllm_cli.client import Client

    with Client(options.url, options.api_key) as client:
        model = options.model_name or client.first_model()
        start = [{"role": "system", "content": options.system_prompt}] if options.system_prompt else []
        messages = list(start)

        def answer(question: str) -> repl.Shown:
            """Ask; a question that got no answer is forgotten, a stopped answer counts as far as it came."""
            asked = [*messages, {"role": "user", "content": question}]
            shown = repl.show(client.chat(model, asked))
            if shown.text:
                messages[:] = [*asked, {"role": "assistant", "content": shown.text}]
            return shown

        def clear() -> str:
            messages[:] = start
            return "The conversation starts anew."

        if options.quick is not None:
            return 130 if answer(options.quick).stopped else 0
        banner = f"{model} at {client.url}. Ctrl-C stops an answer, /clear forgets, /exit or Ctrl-D ends."
        return repl.run(answer, banner=banner, commands={"/clear": clear})


COMMAND = Command("Talk to the model of a running server", add_arguments, run)
