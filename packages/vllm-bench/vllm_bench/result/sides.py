"""The two sides of a comparison: results of one benchmark, and of sweeps those that belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_bench.measure.kinds import in_one_shape, kind_of
from vllm_cli.command import CommandError

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Results of both sides to be held against each other."""

    title: str
    """The settings of a sweep that they share; empty for results of no sweep."""
    base: list[dict[str, Any]]
    new: list[dict[str, Any]]


def _check_one_kind(base: Results, new: Results) -> None:
    """Raise ``CommandError`` (exit code 2) unless all are results of the same benchmark."""
    kinds: list[str | None] = []
    for side, results in (("BASE", base), ("NEW", new)):
        found = {kind_of(result) for result in results if not _has_failed(result)}
        if None in found:
            raise CommandError(f"{side} holds no result of a benchmark of `vllm bench`", exit_code=2)
        if len(found) > 1:
            names = " and ".join(sorted(f"bench {kind}" for kind in found))
            raise CommandError(f"{side} mixes results of {names}", exit_code=2)
        kinds += found
    if len(set(kinds)) > 1:
        raise CommandError(
            f"BASE is of bench {kinds[0]}, NEW of bench {kinds[1]}: they measure other things", exit_code=2
        )


def pairs(base: Results, new: Results) -> tuple[list[Pair], list[str]]:
    """What is to be compared, and notes on what cannot be.

    Where a side holds runs of a sweep under several settings, those under the same settings belong together; runs that
    failed are left out. Else all of a side belong together.

    Raises:
        CommandError: (exit code 2) no setting is on both sides, or a side has no run that came to a result.
    """
    _check_one_kind(base, new)
    notes: list[str] = []
    groups = []
    for side, results in (("BASE", base), ("NEW", new)):
        done = [result for result in results if not _has_failed(result)]
        if not done:
            raise CommandError(f"no run of {side} came to a result", exit_code=2)
        if len(done) < len(results):
            notes.append(f"{side}: {len(results) - len(done)} runs failed and are left out")
        found: dict[str, list[dict[str, Any]]] = {}
        for result in done:
            found.setdefault(_settings_of(result), []).append(in_one_shape(result))
        groups.append(found)
    first, second = groups
    if len(first) == len(second) == 1:
        (title, left), (other, right) = *first.items(), *second.items()
        return [Pair(title if title == other else "", left, right)], notes
    common = [title for title in first if title in second]
    if not common:
        raise CommandError("the sides have no settings of a sweep in common", exit_code=2)
    for side, own, others in (("BASE", first, second), ("NEW", second, first)):
        if alone := [title or "(none)" for title in own if title not in others]:
            notes.append(f"only {side} has the settings {'; '.join(alone)}")
    return [Pair(title, first[title], second[title]) for title in common], notes


def _has_failed(result: Mapping[str, Any]) -> bool:
    """A run of a sweep of which nothing but that is known."""
    return "sweep" in result and "duration" not in result


def _settings_of(result: Mapping[str, Any]) -> str:
    about = result.get("sweep")
    if not isinstance(about, Mapping):
        return ""
    parts = [f"{name}={value}" for side in ("serve", "bench") for name, value in (about.get(side) or {}).items()]
    return ", ".join(parts) or str(about.get("name") or "")
