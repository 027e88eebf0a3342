"""Two sets of results held against each other: may they be compared, and which figure is worse."""

from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_bench.measure.kinds import PHASE
from vllm_bench.measure.ratio import Observed, Ratio, ratio

Results = Sequence[Mapping[str, Any]]

_TIMES = ("ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue")
_MORE_IS_BETTER = (
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("input_sequence_throughput", "requests_per_second", "tokens_per_second", "output_tokens_per_second"),
)
_LESS_IS_BETTER = ("avg_latency", "healthy_seconds", "first_token_seconds")
HEADLINES = (*_MORE_IS_BETTER, "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", *_LESS_IS_BETTER)
"""What a threshold without a metric holds for."""

_SAME_IN_ALL = (
    *("model_id", "tokenizer_id", "endpoint_type", "request_rate", "burstiness", "max_concurrency"),
    *("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps"),
    *("batch_size", "input_len", "output_len", "n", "num_requests"),
)
NO_MATTER = frozenset(
    {
        *("base_url", "host", "port", "insecure", "header", "model", "served_model_name", "backend", "tokenizer"),
        *("label", "percentile_metrics", "metric_percentiles", "goodput", "disable_tqdm", "request_id_prefix"),
        *("save_result", "save_detailed", "append_result", "result_dir", "result_filename", "output_json"),
        *("num_iters", "num_iters_warmup", "timeout"),
        *("ready_check_timeout_sec", "tokenizer_mode", "skip_tokenizer_init", "endpoint", "profile", "self_timed"),
    }
)
"""Flags that change neither the workload nor the load; those of pictures begin with ``plot`` or ``timeline``."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both sides."""

    name: str
    base: float
    new: float
    """Geometric means of the runs."""
    ratio: Ratio | None
    more_is_better: bool
    threshold: float | None
    """Share by which it may be worse; None when none was given for it."""

    @property
    def worse_by(self) -> float:
        """Share by which the new side is worse; negative when it is better."""
        change = self.new / self.base - 1 if self.base else 0.0
        return -change if self.more_is_better else change

    @property
    def verdict(self) -> str:
        """``worse`` and ``better`` where the interval leaves no doubt of a difference.

        Else ``same`` where it excludes a worsening beyond the threshold, and ``unclear`` where it does not.
        """
        if self.ratio is None:
            return "unclear"
        low, high = self.ratio.low, self.ratio.high
        fewer, more = high is not None and high < 1, low is not None and low > 1
        if fewer or more:
            return "better" if more == self.more_is_better else "worse"
        bound = low if self.more_is_better else high
        if bound is None or self.threshold is None:
            return "unclear"
        worst = 1 - bound if self.more_is_better else bound - 1
        return "same" if worst <= self.threshold else "unclear"

    @property
    def fails(self) -> bool:
        """It is worse without doubt, and by more than its threshold."""
        return self.verdict == "worse" and self.threshold is not None and self.worse_by > self.threshold


def thresholds(text: str) -> dict[str, float]:
    """``type=`` of ``--fail-if-worse-than``: ``5%`` for the headlines, ``mean_ttft_ms:10%`` for a figure."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.rpartition(":")
        try:
            percent = float(share.removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent < 100 or not share.endswith("%") or (name and _better(name) is None):
            raise ArgumentTypeError(f"{part!r} is neither like 5% nor like mean_ttft_ms:10%")
        found[name] = percent / 100
    return found


def compare(base: Results, new: Results, limits: Mapping[str, float]) -> list[Compared]:
    """Every figure that all results have.

    Args:
        base: results in the shape of ``kinds.in_one_shape``; ``new``, too.
        limits: figure -> share that it may be worse by; the empty name stands for the headlines.
    """
    found = []
    for name in _common_figures([*base, *new]):
        better = _better(name)
        sides = [[_observed(result, name) for result in side] for side in (base, new)]
        if better is None:
            continue
        threshold = limits.get(name, limits.get("") if name in HEADLINES else None)
        base_mean, new_mean = (_mean(side) for side in sides)
        found.append(Compared(name, base_mean, new_mean, ratio(*sides), better > 0, threshold))
    return found


def objections(base: Results, new: Results) -> list[str]:
    """Why no verdict can be given; empty when one can."""
    found = [f"{side}: {reason}" for side, results in (("base", base), ("new", new)) for reason in _distrust(results)]
    everything = [*base, *new]
    for key in _SAME_IN_ALL:
        _differing(key, [_plain(key, result.get(key)) for result in everything], found)
    flags = [_flags(result) for result in everything]
    if None not in flags:
        known = [each for each in flags if each is not None]
        for key in sorted({name for each in known for name in each}):
            _differing(key, [each.get(key) for each in known], found)
        # Other seeds are other workloads, but both sides may have the same several.
        seeds = [sorted(str(result["fingerprint"].get("seed")) for result in side) for side in (base, new)]
        if set(seeds[0]) != set(seeds[1]):
            found.append(f"seed differs: {', '.join(sorted(set(seeds[0])))} and {', '.join(sorted(set(seeds[1])))}")
    else:
        _differing("num_prompts", [result.get("num_prompts") for result in everything], found)
    return list(dict.fromkeys(found))


def notes(base: Results, new: Results) -> list[str]:
    """What does not forbid a verdict, but should be known."""
    found = []
    if len(base) == len(new) == 1:
        found.append("one run a side: what differs from run to run is not in the intervals; several, alternated, tell")
    prints = [result.get("fingerprint") or {} for result in (*base, *new)]
    if len({str(each.get("machine")) for each in prints}) > 1:
        found.append("the machines of the client differ")
    settings = [each.get("settings") or {} for each in prints]
    names = sorted({name for each in settings for name in each})
    differing = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    if differing:
        found.append(f"settings of the engine differ: {', '.join(differing)}")
    if any("trusted" not in result and "duration" in result for result in (*base, *new)):
        found.append("a result does not say whether its client kept up")
    return found


def _distrust(results: Results) -> Iterable[str]:
    for result in results:
        if result.get("partial"):
            yield f"a run is partial: {result.get('partial_reason')}"
        elif result.get("failed"):
            yield f"{result['failed']} requests failed"
        if result.get("completed") == 0:
            yield "no request was completed"
        if result.get("trusted") is False:
            yield from (f"not trusted: {reason}" for reason in result.get("distrust_reasons") or ["the result says so"])


def _differing(key: str, values: list[Any], found: list[str]) -> None:
    shown = list(dict.fromkeys(str(value) for value in values))
    if len(shown) > 1:
        found.append(f"{key} differs: {' and '.join(shown)}")


def _plain(key: str, value: Any) -> Any:
    if key == "endpoint_type" and value == "vllm":
        return "openai"  # the same API
    return str(value).rstrip("/").rpartition("/")[2] if key in ("tokenizer_id", "model_id") else value


def _flags(result: Mapping[str, Any]) -> dict[str, Any] | None:
    flags = (result.get("fingerprint") or {}).get("flags")
    if not isinstance(flags, dict):
        return None
    return {
        name: value
        for name, value in flags.items()
        if name not in NO_MATTER and name not in _SAME_IN_ALL and not name.startswith(("plot", "timeline"))
    }


def _common_figures(results: Results) -> list[str]:
    """In the order of the first result; ``request_goodput`` only for the same promises."""
    promises = {str(((result.get("fingerprint") or {}).get("flags") or {}).get("goodput")) for result in results}
    # Where all requests want to be sent at once, their waiting tells nothing but how many they were.
    waits = any(result.get("request_rate") != "inf" or result.get("self_timed") for result in results)
    return [
        name
        for name in results[0]
        if _better(name) is not None
        and all(_is_number(result.get(name)) for result in results)
        and (name != "request_goodput" or len(promises) == 1)
        and (waits or "client_queue" not in name)
    ]


def _better(name: str) -> int | None:
    """1: more of it is better; -1: less; None: it is no figure to compare."""
    if name in _MORE_IS_BETTER:
        return 1
    figure, _, rest = name.partition("_")
    is_time = rest.endswith("_ms") and rest.removesuffix("_ms") in _TIMES and figure != "std"
    return -1 if is_time or name in _LESS_IS_BETTER or name.startswith(PHASE) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _observed(result: Mapping[str, Any], name: str) -> Observed:
    value, intervals = float(result[name]), result.get("confidence_intervals") or {}
    interval = intervals.get(name) or (None, None)
    return Observed(value, (interval[0], interval[1]))


def _mean(side: Sequence[Observed]) -> float:
    """Geometric; 0 where one of them is."""
    product = 1.0
    for observed in side:
        product *= max(0.0, observed.value) ** (1 / len(side))
    return product
