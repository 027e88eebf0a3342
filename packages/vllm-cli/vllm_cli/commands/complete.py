"""``vllm complete``: let the model of a running server continue a text."""

from argparse import ArgumentParser, Namespace

from vllm_cli.command import Command
from vllm_cli.commands.connection import add_connection_arguments, positive_integer


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm complete``."""
    add_connection_arguments(parser)
    parser.add_argument("-q", "--quick", metavar="PROMPT", help="complete one prompt and end")
    parser.add_argument(
        "--max-tokens", type=positive_integer, metavar="N", help="longest completion in tokens (default: the server's)"
    )


def run(options: Namespace) -> int:
    """One completion with ``--quick``, else one for every line until Ctrl-D; returns the exit code."""
    from vllm_cli import repl
    from vllm_cli.client import Client

    with Client(options.url, options.api_key) as client:
        model = options.model_name or client.first_model()

        def answer(prompt: str) -> repl.Shown:
            return repl.show(client.complete(model, prompt, options.max_tokens))

        if options.quick is not None:
            return 130 if answer(options.quick).stopped else 0
        return repl.run(answer, banner=f"{model} at {client.url}. Ctrl-C stops a completion, Ctrl-D ends.")


COMMAND = Command("Let the model of a running server continue a text", add_arguments, run)
