"""Which steps are captured as CUDA graphs, by the settings."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_engine import envs
from vllm_engine.config.groups import EngineConfig
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

GraphMode = Literal["NONE", "PIECEWISE", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"]

_MODE_OF_LEVEL: dict[int, GraphMode] = {
    0: "NONE",
    1: "PIECEWISE",
    2: "FULL_AND_PIECEWISE",
    3: "FULL_AND_PIECEWISE",
}
MOST_BY_DEFAULT = 512
"""Tokens of the largest captured step, where no setting says otherwise."""


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Sizes, ascending, of the steps that are captured; a smaller step is padded up to the next.

    Args:
        full: of steps with one token of each sequence, which are captured whole.
        pieces: tokens, of any other steps, which are captured in pieces between their attention layers.
        num_warmups: runs before a capture, beside the one that is always made.
        after_ready: capture while the engine has nothing to do, or when a size is first needed, not at start.
    """

    full: tuple[int, ...]
    pieces: tuple[int, ...]
    num_warmups: int = 0
    after_ready: bool = False


def plan_graphs(config: EngineConfig, max_num_seqs: int) -> GraphPlan | None:
    """The plan for a GPU; None where every step runs call by call.

    Args:
        config: which ``check_graphs`` has taken.
        max_num_seqs: requests in a step, at most.
    """
    mode = mode_in_force(config)
    sizes = _sizes(config, max_num_seqs)
    if mode == "NONE" or not sizes:
        return None
    full = () if mode == "PIECEWISE" else _up_to(sizes, max_num_seqs)
    pieces = () if mode == "FULL_DECODE_ONLY" else sizes
    after_ready: bool = envs.get("VLLM_CUDAGRAPH_CAPTURE_AFTER_READY")
    return GraphPlan(full, pieces, config.compilation.cudagraph_num_of_warmups, after_ready)


def mode_in_force(config: EngineConfig) -> GraphMode:
    """``cudagraph_mode``, or that of the optimization level; none with ``enforce_eager``."""
    if config.model.enforce_eager:
        return "NONE"
    asked = config.compilation.cudagraph_mode
    if asked is None:
        return _MODE_OF_LEVEL[config.optimization_level]
    if asked == "FULL":
        logger.info(
            "cudagraph_mode=FULL becomes FULL_AND_PIECEWISE: attention to prompts is planned by their lengths, so a "
            "step that has some cannot be captured whole"
        )
        return "FULL_AND_PIECEWISE"
    return asked


def size_for(sizes: Sequence[int], count: int) -> int | None:
    """The smallest of the ascending ``sizes`` that holds ``count``; None when it is too much for all."""
    place = bisect_left(sizes, count)
    return sizes[place] if place < len(sizes) else None


def default_sizes(largest: int) -> tuple[int, ...]:
    """1, 2, 4 and every eighth size: what is padded is at most an eighth of a larger step, or seven tokens."""
    return tuple(size for size in (1, 2, 4, *range(8, largest + 1, 8)) if size <= largest)


def check_graphs(config: EngineConfig) -> None:
    """Raise ``ConfigError`` for sizes that are none."""
    sizes, largest = config.compilation.cudagraph_capture_sizes, config.compilation.max_cudagraph_capture_size
    if not sizes:
        return
    field = "cudagraph_capture_sizes"
    if min(sizes) < 1:
        raise ConfigError(f"{field} must be at least 1 each, got {min(sizes)}", field=field)
    if largest is not None and largest < max(sizes):
        raise ConfigError(
            f"max_cudagraph_capture_size ({largest}) must be at least the largest of {field} ({max(sizes)})",
            field="max_cudagraph_capture_size",
        )


def _sizes(config: EngineConfig, max_num_seqs: int) -> tuple[int, ...]:
    """All sizes in ascending order, none larger than a step can need."""
    asked, largest = config.compilation.cudagraph_capture_sizes, config.compilation.max_cudagraph_capture_size
    if asked is not None:
        sizes = tuple(sorted(set(asked)))
    else:
        sizes = default_sizes(min(2 * max_num_seqs, MOST_BY_DEFAULT) if largest is None else largest)
    budget = config.scheduler.max_num_batched_tokens
    return sizes if budget is None else _up_to(sizes, budget)


def _up_to(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Those that hold at most ``count``, and the first that holds so many."""
    return sizes[: bisect_left(sizes, count) + 1]
