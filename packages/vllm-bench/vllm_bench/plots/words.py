"""What was measured, in words for titles and legends."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_bench.measure.comparison import NO_MATTER

Result = Mapping[str, Any]

_MOST_LETTERS = 60
_NO_SETTINGS = frozenset(
    {
        *("date", "label", "backend", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency"),
        *("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "duration", "seed", "num_clients", "num_warmups"),
        *("tokens_counted_by", "partial", "partial_reason", "interrupted_by", "output_token_mismatch_example"),
        *("trusted", "self_timed", "fingerprint", "error_counts", "confidence_intervals"),
    }
)
"""Keys and flags that make no other curve: the load is what a curve runs over, the rest is what came of it."""


def load(result: Result) -> str:
    """How the requests were sent: ``at most 8 at a time``."""
    rate, limit, ramp = result.get("request_rate"), result.get("max_concurrency"), result.get("ramp_up_strategy")
    parts = []
    if result.get("self_timed"):
        parts.append("at the moments of the trace")
    elif ramp:
        parts.append(f"{ramp} from {result.get('ramp_up_start_rps'):g} to {result.get('ramp_up_end_rps'):g} requests/s")
    elif rate not in (None, "inf"):
        burstiness = result.get("burstiness")
        shape = {1.0: "Poisson", "inf": "constant", None: ""}.get(burstiness, f"burstiness {burstiness}")
        parts.append(f"{float(str(rate)):g} requests/s" + (f" ({shape})" if shape else ""))
    if limit is not None:
        parts.append(f"at most {limit} at a time")
    return ", ".join(parts) or "all at once"


def short_load(result: Result) -> str:
    """The same beside a point: ``8``, ``10/s``."""
    rate, limit = result.get("request_rate"), result.get("max_concurrency")
    parts = [] if rate in (None, "inf") else [f"{float(str(rate)):g}/s"]
    if limit is not None:
        parts.append(str(limit))
    return ", ".join(parts) or "all"


def load_order(result: Result) -> tuple[float, float]:
    """Sorts results of one curve."""
    limit = result.get("max_concurrency")
    return float(str(result.get("request_rate") or "inf")), float("inf") if limit is None else float(limit)


def measured(result: Result) -> str:
    """Model, number of requests, their load and their lengths."""
    completed = result.get("completed") or 0
    parts = [shortened(str(result.get("model_id"))), f"{completed} requests", load(result)]
    tokens = [result.get("total_input_tokens"), result.get("total_output_tokens")]
    lengths = [
        f"{total / completed:.0f} tokens {side}"
        for total, side in zip(tokens, ("in", "out"), strict=True)
        if completed and isinstance(total, (int, float))
    ]
    if lengths:
        parts.append(f"on average {', '.join(lengths)}")
    return " · ".join(parts)


def doubt(result: Result) -> str | None:
    """Why its figures cannot be taken for the server's; None when they can."""
    if result.get("partial"):
        return f"PARTIAL: {result.get('partial_reason')}"
    if result.get("trusted") is False:
        return "NO VERDICT: " + "; ".join(result.get("distrust_reasons") or ["the result says so"])
    return None


def names(results: Sequence[Result]) -> list[str]:
    """A name for each, of what differs between them; the load among it."""
    curves = names_of_settings(results)
    return [
        f"{name} ({_which(result)})" if curves.count(name) > 1 else name
        for name, result in zip(curves, results, strict=True)
    ]


def names_of_settings(results: Sequence[Result]) -> list[str]:
    """The same for runs made again, which share a name."""
    curves = curve_names(results)
    loads = [load(result) for result in results]
    if len(set(loads)) > 1 or len(set(curves)) == 1:
        return [", ".join(filter(None, pair)) for pair in zip(curves, loads, strict=True)]
    return curves


def by_numbers(name: str) -> list[tuple[float, str]]:
    """Sorts names: ``max_num_seqs 4`` comes before ``max_num_seqs 16``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if number % 2 else (-1.0, part) for number, part in enumerate(parts)]


def _which(result: Result) -> str:
    """What tells a run from others of the same settings."""
    number = (result.get("sweep") or {}).get("run")
    return f"run {number}" if number is not None else str(result.get("date"))


def curve_names(results: Sequence[Result]) -> list[str]:
    """The settings that differ between the results, but for their load: ``block_size 32``; empty where none does."""
    settings = [_settings(result) for result in results]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if len({each.get(key) for each in settings}) > 1]
    labels = [result.get("label") for result in results]
    named = len(set(labels)) > 1
    return [
        shortened(
            ", ".join(
                ([str(label)] if named and label else [])
                + [each[key] if key == "model_id" else f"{key} {each[key]}" for key in differing if key in each]
            )
        )
        for label, each in zip(labels, settings, strict=True)
    ]


def shortened(text: str) -> str:
    """``text``, without its middle where it is long."""
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 20]}…{text[-19:]}"


def _settings(result: Result) -> dict[str, str]:
    """What the result says of itself, of its flags, and of what a sweep varied, as texts."""
    found: dict[str, str] = {}
    for key, value in result.items():
        if key in _NO_SETTINGS:
            continue
        if isinstance(value, (str, bool)):
            found[key] = str(value)
    flags = _texts((result.get("fingerprint") or {}).get("flags") or {})
    sweep = result.get("sweep") or {}
    return flags | found | _texts(sweep.get("bench") or {}) | _texts(sweep.get("serve") or {})


def _texts(flags: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in flags.items():
        plain = name.lstrip("-").replace("-", "_")
        if not (plain in NO_MATTER or plain in _NO_SETTINGS or plain.startswith(("plot", "timeline"))):
            found[plain] = str(value)
    return found
