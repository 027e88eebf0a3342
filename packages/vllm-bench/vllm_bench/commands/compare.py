"""``vllm bench compare``: whether new results are worse than base ones, for a reader or for CI."""

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from vllm_bench.measure.comparison import Compared
    from vllm_bench.result.sides import Pair

SUMMARY = "Compare saved results: ratios with 95 % intervals, and an exit code for performance CI"

NO_VERDICT = 3
"""Exit code where the results cannot be compared or believed."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm bench compare``."""
    from vllm_bench.measure.comparison import HEADLINES, thresholds

    parser.add_argument(
        "base",
        metavar="BASE",
        help="saved result of any benchmark to compare with; several runs as a.json,b.json or in one file, those of a "
        "sweep by its folder",
    )
    parser.add_argument("new", metavar="NEW", help="saved result, or several, to be judged")
    parser.add_argument(
        "--fail-if-worse-than",
        "--threshold",
        type=thresholds,
        default={},
        metavar="P%",
        help="end with 1 when a figure is worse without doubt, and by more than this: 5%% for "
        f"{', '.join(name for name in HEADLINES)}; mean_ttft_ms:10%% for one; several with commas (default: never)",
    )
    parser.add_argument("--json", action="store_true", help="write the comparison as JSON instead of a table")


def run(options: Namespace) -> int:
    """Compare and report; 0: not worse, 1: worse beyond a threshold, 3: no verdict can be given."""
    from vllm_bench.result.comparison_lines import comparison_json, comparison_lines
    from vllm_bench.result.read import read_side
    from vllm_bench.result.sides import pairs

    both, left_out = pairs(read_side(options.base), read_side(options.new))
    verdicts = [_judge(pair, options.fail_if_worse_than) for pair in both]
    codes = [verdict.code for verdict in verdicts]
    code = NO_VERDICT if NO_VERDICT in codes else max(codes)
    if options.json:
        contents = [
            {"runs": verdict.runs, "exit_code": verdict.code, "objections": verdict.objections, "notes": verdict.notes}
            | {"figures": comparison_json(verdict.compared)}
            for verdict in verdicts
        ]
        content: dict[str, Any] = {"base": options.base, "new": options.new, "exit_code": code}
        if len(contents) == 1:
            content = contents[0] | content | {"notes": left_out + verdicts[0].notes}
        else:
            content["notes"] = left_out
            content["pairs"] = [{"settings": pair.title} | one for pair, one in zip(both, contents, strict=True)]
        print(json.dumps(content, indent=1))
        return code
    for note in left_out:
        print(f"note: {note}")
    for pair, verdict in zip(both, verdicts, strict=True):
        if len(both) > 1:
            print(f"\n{pair.title}")
        print("\n".join(comparison_lines(verdict.compared)))
        for note in verdict.notes:
            print(f"note: {note}")
        sys.stdout.flush()
        where = f"{pair.title}: " if len(both) > 1 else ""
        if verdict.objections:
            print(f"\n{where}NO VERDICT: these results cannot be compared, or not be believed", file=sys.stderr)
            print("\n".join(verdict.objections), file=sys.stderr)
        elif verdict.failing:
            print(f"\n{where}worse: {', '.join(verdict.failing)}", file=sys.stderr)
    return code


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of one pair."""

    compared: "list[Compared]"
    runs: list[int]
    objections: list[str]
    notes: list[str]
    failing: list[str]
    code: int


def _judge(pair: "Pair", limits: dict[str, float]) -> _Verdict:
    from vllm_bench.measure.comparison import compare, notes, objections

    compared = compare(pair.base, pair.new, limits)
    if not compared:
        raise CommandError("the results have no figure in common", exit_code=2)
    if missing := [name for name in limits if name and name not in {each.name for each in compared}]:
        raise CommandError(f"--fail-if-worse-than: not all results have {', '.join(missing)}", exit_code=2)
    reasons = objections(pair.base, pair.new)
    judged = [each for each in compared if each.threshold is not None]
    if judged and all(each.ratio is None or each.ratio.low is each.ratio.high is None for each in judged):
        reasons.append("a single run without intervals tells nothing of chance; give several runs a side")
    failing = [each.name for each in compared if each.fails]
    code = NO_VERDICT if reasons else 1 if failing else 0
    return _Verdict(compared, [len(pair.base), len(pair.new)], reasons, notes(pair.base, pair.new), failing, code)
