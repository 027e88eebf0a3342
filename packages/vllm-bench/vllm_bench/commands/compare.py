"""``vllm bench compare``: whether new results are worse than base ones, for a reader or for CI."""

import json
import sys
from argparse import ArgumentParser, Namespace

from vllm_cli.command import CommandError

SUMMARY = "Compare saved results: ratios with 95 % intervals, and an exit code for performance CI"

NO_VERDICT = 3
"""Exit code where the results cannot be compared or believed."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``vllm bench compare``."""
    from vllm_bench.measure.comparison import HEADLINES, thresholds

    parser.add_argument(
        "base", metavar="BASE", help="saved result to compare with; several runs as a.json,b.json or in one file"
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
    from vllm_bench.measure.comparison import compare, notes, objections
    from vllm_bench.result.comparison_lines import comparison_json, comparison_lines
    from vllm_bench.result.read import read_side

    limits = options.fail_if_worse_than
    base, new = read_side(options.base), read_side(options.new)
    compared = compare(base, new, limits)
    if not compared:
        raise CommandError("the results have no figure in common", exit_code=2)
    if missing := [name for name in limits if name and name not in {each.name for each in compared}]:
        raise CommandError(f"--fail-if-worse-than: not all results have {', '.join(missing)}", exit_code=2)

    reasons = objections(base, new)
    judged = [each for each in compared if each.threshold is not None]
    if judged and all(each.ratio is None or each.ratio.low is each.ratio.high is None for each in judged):
        reasons.append("a single run without intervals tells nothing of chance; give several runs a side")
    failing = [each.name for each in compared if each.fails]
    code = NO_VERDICT if reasons else 1 if failing else 0
    if options.json:
        content = {"base": options.base, "new": options.new, "runs": [len(base), len(new)], "exit_code": code}
        content |= {"objections": reasons, "notes": notes(base, new), "figures": comparison_json(compared)}
        print(json.dumps(content, indent=1))
        return code
    print("\n".join(comparison_lines(compared)))
    for note in notes(base, new):
        print(f"note: {note}")
    if reasons:
        print("\nNO VERDICT: these results cannot be compared, or not be believed", file=sys.stderr)
        print("\n".join(reasons), file=sys.stderr)
    elif failing:
        print(f"\nworse: {', '.join(failing)}", file=sys.stderr)
    return code
