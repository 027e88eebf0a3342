"""Whether the runs of a comparison did the same, so that their figures may be held beside each other."""

from typing import Any

SAME_WORK = ("completed", "failed", "total_input_tokens", "total_output_tokens")
"""Keys of results that must be equal within a round."""


def complaint(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str | None:
    """Why results of rounds cannot be compared; None if they can."""
    if not ours or len(ours) != len(peer):
        return f"{len(ours)} results of ours, {len(peer)} of the peer's"
    for number, results in enumerate(zip(ours, peer, strict=True), 1):
        one, other = ([result.get(key) for key in SAME_WORK] for result in results)
        if one != other:
            return f"not the same work in round {number}: {', '.join(SAME_WORK)} are {one}, the peer's {other}"
    return None
