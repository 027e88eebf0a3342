"""The options that ``vllm chat`` and ``vllm complete`` share: which server, which model, which key."""

from argparse import ArgumentParser, ArgumentTypeError

DEFAULT_URL = "http://localhost:8000/v1"


def add_connection_arguments(parser: ArgumentParser) -> None:
    """``--url``, ``--model-name`` and ``--api-key``."""
    parser.add_argument("--url", default=DEFAULT_URL, help="address of the server's API (default: %(default)s)")
    parser.add_argument("--model-name", metavar="NAME", help="model to ask (default: the first that the server lists)")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="key of the server (default: $VLLM_API_KEY, else $OPENAI_API_KEY)",
    )


def positive_integer(text: str) -> int:
    """``type=`` of an option that counts something; raises ``ArgumentTypeError`` for anything below 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return number
