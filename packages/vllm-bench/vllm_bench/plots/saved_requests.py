"""The requests of a saved result, read back from its arrays."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ARRAYS = ("start_times", "ttfts", "itls", "input_lens", "output_lens", "errors")


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """One request; times in seconds, moments from the begin of the run."""

    start: float
    ttft: float | None
    """To the first text; None when none came."""
    itls: list[float]
    latency: float
    """To its end, or to its failure."""
    input_len: int | None
    output_len: int
    error: str

    @property
    def end(self) -> float:
        """Moment of its end."""
        return self.start + self.latency

    @property
    def text_moments(self) -> list[float]:
        """When its texts came, or its end where none did."""
        if self.ttft is None:
            return [self.end]
        return list(itertools.accumulate(self.itls, initial=self.start + self.ttft))

    @property
    def tpot(self) -> float | None:
        """Mean seconds of a token after the first; None for an answer of less than two tokens or texts."""
        if self.output_len < 2 or not self.itls:
            return None
        return sum(self.itls) / (self.output_len - 1)


def saved_requests(result: Mapping[str, Any]) -> list[SavedRequest] | None:
    """In the order of their start; None for a result that was saved without ``--save-detailed``.

    Results of vLLM's own tool are read too: their moments count from an unknown one, which is taken for the start of
    the first request, and a failed request has a time to first token of 0.
    """
    columns: list[Any] = [result.get(name) for name in _ARRAYS]
    if not all(isinstance(column, list) for column in columns):
        return None
    starts, ttfts, itls, input_lens, output_lens, errors = columns
    latencies = result.get("latencies") or [(ttft or 0.0) + sum(gaps) for ttft, gaps in zip(ttfts, itls, strict=True)]
    ours = "fingerprint" in result
    began = 0.0 if ours else min(starts, default=0.0)
    requests = [
        SavedRequest(start - began, ttft if ours or not error else None, gaps, latency, tokens_in, tokens_out, error)
        for start, ttft, gaps, latency, tokens_in, tokens_out, error in zip(
            starts, ttfts, itls, latencies, input_lens, output_lens, errors, strict=True
        )
    ]
    return sorted(requests, key=lambda request: request.start)
