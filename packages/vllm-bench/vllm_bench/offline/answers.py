"""What the engine gave: whether it is what was measured, and how many tokens it is."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from vllm_engine.outputs import RequestOutput


class TokenCounts(NamedTuple):
    """Tokens of finished requests."""

    prompt: int
    output: int
    """Of all completions of all requests."""


def count_tokens(outputs: "Sequence[RequestOutput]", wanted: Sequence[int | None]) -> TokenCounts:
    """Count, and raise ``CommandError`` if a completion failed or has another number of tokens than was wanted.

    Args:
        outputs: whole ones, not deltas.
        wanted: tokens of each completion, request by request; None where it may end as the model likes.
    """
    prompt = output = 0
    for request, length in zip(outputs, wanted, strict=True):
        prompt += len(request.prompt_token_ids)
        for completion in request.outputs:
            if completion.finish_reason == "error":
                raise CommandError(f"the engine failed on a request: {completion.error or 'without a reason'}")
            got = len(completion.token_ids)
            if length is not None and got != length:
                raise CommandError(f"an answer has {got} tokens instead of {length}: these figures would mislead")
            output += got
    return TokenCounts(prompt, output)


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turns what a running engine raises into ``CommandError``: code 2 for a request that it refuses."""
    from vllm_engine.errors import EngineDead, InvalidRequest, RequestFailed

    try:
        yield
    except InvalidRequest as error:
        raise CommandError(str(error), exit_code=2) from error
    except (EngineDead, RequestFailed) as error:
        raise CommandError(f"the engine failed: {error}") from error
