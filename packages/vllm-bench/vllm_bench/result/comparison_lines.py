"""A comparison for its reader: a table, or JSON."""

from collections.abc import Sequence
from typing import Any

from vllm_bench.measure.comparison import Compared


def comparison_lines(compared: Sequence[Compared]) -> list[str]:
    """A row for each figure."""
    width = max(len("figure"), *(len(each.name) for each in compared))
    lines = [f"{'figure':<{width}}{'base':>12}{'new':>12}{'new/base':>10}   95 % interval   verdict"]
    for each in compared:
        found = each.ratio
        value = _short(found.value) if found is not None else "-"
        ends = [found.low, found.high] if found is not None else [None, None]
        low, high = (_short(end) if end is not None else "?" for end in ends)
        limit = f" beyond {100 * each.threshold:g} %" if each.fails and each.threshold is not None else ""
        row = f"{each.name:<{width}}{_amount(each.base):>12}{_amount(each.new):>12}{value:>10}{low:>8} .. {high:<7} "
        lines.append(f"{row} {each.verdict}{limit}")
    return lines


def _amount(value: float) -> str:
    """Two digits after the point, and four of what is small, such as seconds."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _short(ratio: float) -> str:
    """Four digits, and three after the point at most."""
    return f"{ratio:.3f}" if ratio < 100 else f"{ratio:.4g}"


def comparison_json(compared: Sequence[Compared]) -> dict[str, Any]:
    """The same as an object: figure -> its facts."""
    return {
        each.name: {
            "base": each.base,
            "new": each.new,
            "ratio": each.ratio.value if each.ratio is not None else None,
            "ratio_interval": [each.ratio.low, each.ratio.high] if each.ratio is not None else None,
            "more_is_better": each.more_is_better,
            "threshold": each.threshold,
            "verdict": each.verdict,
            "fails": each.fails,
        }
        for each in compared
    }
