"""What the core answers to the beginning and the end of a profile, as the faces of the engine tell it."""

from typing import Any

from vllm_engine.errors import InvalidRequest


def check_started(answer: Any) -> None:
    """Raises ``InvalidRequest`` when no profile has begun: None without a profiler, False while one is under way."""
    if answer is None:
        raise InvalidRequest("this engine has no profiler: it runs without profiler_config", field="profiler_config")
    if not answer:
        raise InvalidRequest("a profile is under way already")


def check_stopped(answer: Any) -> list[str]:
    """The names of the files that were written. Raises ``InvalidRequest`` when no profile was under way."""
    if answer is None:
        raise InvalidRequest("no profile is under way")
    return list(answer)
