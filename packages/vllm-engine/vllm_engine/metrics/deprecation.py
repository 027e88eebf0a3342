"""Which metrics go away, and when: deprecated in X.Y, hidden in X.Y+1, removed in X.Y+2.

``--show-hidden-metrics-for-version`` shows the hidden ones of a version for one version more.
"""

import re
from typing import NamedTuple

from vllm_engine import __version__
from vllm_engine.errors import ConfigError

_FIELD = "show_hidden_metrics_for_version"


class Version(NamedTuple):
    """X.Y of a version X.Y.Z."""

    major: int
    minor: int

    @classmethod
    def of(cls, text: str) -> "Version":
        """Raises ``ValueError`` for what is no version."""
        match = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(\..*)?", text.strip())
        if match is None:
            raise ValueError(f"no version: {text!r}")
        return cls(int(match[1]), int(match[2]))

    def later(self, count: int) -> "Version":
        """So many minor versions later."""
        return Version(self.major, self.minor + count)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


CURRENT = Version.of(__version__)

DEPRECATED: dict[str, tuple[Version, str]] = {
    "vllm:num_requests_swapped": (Version(0, 0), ""),
    "vllm:cpu_cache_usage_perc": (Version(0, 0), ""),
    "vllm:cpu_prefix_cache_hit_rate": (Version(0, 0), ""),
    "vllm:gpu_prefix_cache_hit_rate": (Version(0, 0), "vllm:prefix_cache_hits_total / vllm:prefix_cache_queries_total"),
    "vllm:time_in_queue_requests": (Version(0, 0), "vllm:request_queue_time_seconds"),
    "vllm:model_forward_time_milliseconds": (Version(0, 0), "vllm:request_inference_time_seconds"),
    "vllm:model_execute_time_milliseconds": (Version(0, 0), "vllm:request_inference_time_seconds"),
    "vllm:gpu_cache_usage_perc": (Version(0, 1), "vllm:kv_cache_usage_perc"),
    "vllm:gpu_prefix_cache_queries_total": (Version(0, 1), "vllm:prefix_cache_queries_total"),
    "vllm:gpu_prefix_cache_hits_total": (Version(0, 1), "vllm:prefix_cache_hits_total"),
    "vllm:time_per_output_token_seconds": (Version(0, 1), "vllm:inter_token_latency_seconds"),
}
"""In which version each was deprecated (0.0: before the first), and what replaces it; empty for nothing."""


def is_shown(name: str, escape: str | None = None, *, current: Version = CURRENT) -> bool:
    """Whether a metric is on the page of version ``current``; ``escape`` is the operator's setting."""
    if name not in DEPRECATED:
        return True
    since = DEPRECATED[name][0]
    if current < since.later(1):
        return True
    # What is named is the version that hid it, or the one before, in which it was last shown.
    return current < since.later(2) and escape is not None and Version.of(escape) in (since, since.later(1))


def check_shown_for(escape: str, *, current: Version = CURRENT) -> None:
    """Raise ``ConfigError`` for a setting that shows nothing: it is no version, or nothing is hidden since then."""
    try:
        Version.of(escape)
    except ValueError:
        raise ConfigError(f"{_FIELD} must be a version such as {current}, got {escape[:40]!r}", field=_FIELD) from None
    if not any(is_shown(name, escape, current=current) > is_shown(name, current=current) for name in DEPRECATED):
        versions = sorted(
            {
                version
                for since, _ in DEPRECATED.values()
                if since.later(1) <= current < since.later(2)
                for version in (since, since.later(1))
            }
        )
        known = f"those of {' and '.join(map(str, versions))} are" if versions else "none is"
        raise ConfigError(
            f"{_FIELD}={escape}: no metric is hidden since that version; of this version, {current}, {known}",
            field=_FIELD,
        )
