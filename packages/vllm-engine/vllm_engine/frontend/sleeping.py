"""What may be asked of sleep mode."""

from collections.abc import Sequence

from vllm_engine.config import EngineConfig
from vllm_engine.errors import InvalidRequest, shown
from vllm_engine.messages import SLEEP_LEVELS, SLEEP_TAGS


def check_can_sleep(config: EngineConfig, field: str | None = None) -> None:
    """Raise ``InvalidRequest`` where an engine cannot sleep. ``field``: what asks for it."""
    if not config.model.enable_sleep_mode:
        raise InvalidRequest("this engine cannot sleep: it runs without enable_sleep_mode", field=field)


def check_sleep(config: EngineConfig, level: int) -> None:
    """Raise ``InvalidRequest`` where an engine cannot sleep, or not at this level."""
    check_can_sleep(config, "level")
    if type(level) is not int or level not in SLEEP_LEVELS:
        raise InvalidRequest(f"level must be 0, 1 or 2, got {shown(level)}", field="level")


def check_tags(tags: Sequence[str] | None) -> None:
    """Raise ``InvalidRequest`` for a name of nothing that sleeps."""
    if tags is not None and (isinstance(tags, str) or not set(tags) <= set(SLEEP_TAGS)):
        raise InvalidRequest(f"tags can be {' and '.join(SLEEP_TAGS)}", field="tags")
