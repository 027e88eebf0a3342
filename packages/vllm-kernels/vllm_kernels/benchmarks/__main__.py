"""``python -m vllm_kernels.benchmarks``: check and time every kernel on this GPU.

Each result is compared with float64, then timed, and its achieved bandwidth or rate is given as a part of the measured
ceiling (a copy, a product of cuBLAS in bf16) and beside torch's own operation, as torch's time over ours. Exit code 1
when a value is wrong or a case fails, which keeps no other from its turn; goals stand in a column of their own, and
those that are missed change nothing. When the time is used up, the rest is left out, and said so. ``--check`` compares
only, on tiny shapes, and runs without a GPU with TRITON_INTERPRET=1.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from vllm_kernels.backend import use_face
from vllm_kernels.benchmarks import (
    adapters,
    attention,
    caches,
    drawing,
    experts,
    latents,
    products,
    projections,
    rows,
    states,
)
from vllm_kernels.benchmarks.case import Case, Sizes, relative_error
from vllm_kernels.benchmarks.ceilings import Ceilings, measure
from vllm_kernels.benchmarks.timing import device_name, median_seconds
from vllm_kernels.triton.device import why_not

_GROUPS = (rows, caches, attention, latents, projections, products, experts, adapters, states, drawing)


@dataclass(frozen=True)
class Line:
    """What was found out of one case.

    ``part`` of the ceiling; ``ratio`` the peer's time over ours; ``fault``: why there is no result.
    """

    name: str
    shape: str
    error: float
    right: bool
    microseconds: float | None = None
    rate: str = ""
    part: float | None = None
    ratio: float | None = None
    peer: str = ""
    goal: str = ""
    missed: bool = False
    fault: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says. Returns the exit code: 0, 1 for a wrong value, 2 where nothing can run."""
    options = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = why_not(device)
    if reason is None and device.type != "cuda" and not options.check:
        reason = "times need a GPU; --check compares values only"
    if reason is not None:
        print(f"vllm_kernels.benchmarks: error: {reason}", file=sys.stderr)
        return 2
    # The interpreter multiplies bf16 wrongly.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    ceilings = None if options.check else measure(device)
    wrong = False
    head = {"device": device_name(device), "ceilings": asdict(ceilings) if ceilings else None}
    print(json.dumps(head) if options.json else _head(device, ceilings), flush=True)
    torch.manual_seed(0)
    until = time.monotonic() + options.seconds
    left_out = []
    with use_face("triton"):
        for case in _cases(device, dtype, Sizes(tiny=options.check), options.only):
            if time.monotonic() > until:
                left_out.append(case.name)
                continue
            line = _tried(case, ceilings)
            wrong |= not line.right
            print(_json(line) if options.json else _text(line), flush=True)
    if left_out:
        print(f"{len(left_out)} left out after {options.seconds:g} s: {', '.join(left_out)}", file=sys.stderr)
    return 1 if wrong else 0


def _cases(device: torch.device, dtype: torch.dtype, sizes: Sizes, only: list[str]) -> Iterator[Case]:
    for group in _GROUPS:
        for case in group.cases(device, dtype, sizes):
            if all(word in case.name for word in only):
                yield case


def _tried(case: Case, ceilings: Ceilings | None) -> Line:
    """The line of a case, also of one that does not compile or does not fit this device."""
    from triton.errors import TritonError

    try:
        return _line(case, ceilings)
    except (RuntimeError, TritonError) as error:
        fault = f"{type(error).__name__}: {error}"
        return Line(case.name, case.shape, math.inf, False, goal=_goal(case), fault=fault)


def _line(case: Case, ceilings: Ceilings | None) -> Line:
    error = relative_error(case.checked(case.run()), case.truth())
    right = error <= case.tolerance
    if ceilings is None or not right:
        return Line(case.name, case.shape, error, right, goal=_goal(case))
    seconds = median_seconds(case.run)
    if case.bound == "memory":
        part, rate = case.moved / seconds / ceilings.memory, f"{case.moved / seconds / 1e9:.0f} GB/s"
    else:
        part, rate = case.computed / seconds / ceilings.matrix, f"{case.computed / seconds / 1e12:.0f} TFLOP/s"
    ratio = None if case.peer is None else median_seconds(case.peer) / seconds
    missed = (case.goal is not None and part < case.goal) or (
        case.peer_goal is not None and ratio is not None and ratio < case.peer_goal
    )
    return Line(
        case.name, case.shape, error, right, seconds * 1e6, rate, part, ratio, case.peer_name, _goal(case), missed
    )


def _goal(case: Case) -> str:
    words = [] if case.goal is None else [f"{case.goal:.0%} of the ceiling"]
    words += [] if case.peer_goal is None else [f"{case.peer_goal}x {case.peer_name}"]
    return ", ".join(words)


def _head(device: torch.device, ceilings: Ceilings | None) -> str:
    if ceilings is None:
        return f"{device_name(device)}: values only, tiny shapes"
    copied, multiplied = ceilings.memory / 1e9, ceilings.matrix / 1e12
    return f"{device_name(device)}: copy {copied:.0f} GB/s, bf16 product {multiplied:.0f} TFLOP/s"


def _json(line: Line) -> str:
    """One object; JSON has no infinity."""
    return json.dumps(asdict(line) | {"error": line.error if math.isfinite(line.error) else None})


def _text(line: Line) -> str:
    words = [f"{line.name:<28} {line.shape:<36} error {line.error:.1e}{'' if line.right else ' WRONG'}"]
    if line.fault:
        words = [f"{line.name:<28} {line.shape:<36} FAILED: {line.fault}"]
    if line.microseconds is not None and line.part is not None:
        words.append(f"{line.microseconds:9.1f} us {line.rate:>12} {line.part:5.0%} of the ceiling")
    if line.ratio is not None:
        words.append(f"{line.ratio:.2f}x {line.peer}")
    if line.goal:
        reached = "" if line.microseconds is None else " (missed)" if line.missed else " (reached)"
        words.append(f"goal {line.goal}{reached}")
    return "  ".join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_kernels.benchmarks", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare values on tiny shapes, time nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose names have all these words")
    parser.add_argument(
        "--seconds", type=float, default=420, help="after which nothing is begun (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
