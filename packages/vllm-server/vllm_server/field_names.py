"""Error messages speak the language of the request: ``top_logprobs`` where the engine says ``logprobs``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vllm_engine.errors import InvalidRequest

_EVERYWHERE = {"extra_args": "vllm_xargs"}
"""What all requests call otherwise than the engine."""


@contextmanager
def named_as_in_request(names: Mapping[str, str]) -> Iterator[None]:
    """Within this block, an ``InvalidRequest`` about the engine's field ``name`` becomes one about ``names[name]``."""
    names = {**_EVERYWHERE, **names}
    try:
        yield
    except InvalidRequest as error:
        if error.field is None or error.field not in names:
            raise
        asked = names[error.field]
        raise type(error)(str(error).replace(error.field, asked, 1), field=asked) from error
