"""``python -m vllm_kernels.aot``: compile every Triton kernel in every configuration, without a GPU.

Prints one line for each (or JSON lines with ``--json``): registers, spilled bytes and shared memory, and a summary.
With ``--loops`` also what a turn of each innermost loop has of instructions, products of matrices and loads.
Exit code 1 when one does not compile.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_kernels.in_parts import in_parts, jobs, part

if TYPE_CHECKING:
    from vllm_kernels.triton.kernel import Configuration, Kernel

TARGETS = (80, 90, 100)


def main(arguments: list[str] | None = None) -> int:
    """Compile as the command line says. Returns the exit code: 0, 1 for a failure, 2 without Triton."""
    options = _parser().parse_args(arguments)
    try:
        from vllm_kernels.triton.catalogue import KERNELS
    except ImportError as error:
        print(f"vllm_kernels.aot: error: triton cannot be imported: {error}", file=sys.stderr)
        return 2
    names = sorted(kernel.name for kernel in KERNELS)
    if not set(options.kernels or ()) <= set(names):
        print(f"vllm_kernels.aot: error: --kernels must be of {', '.join(names)}", file=sys.stderr)
        return 2
    kernels = [kernel for kernel in KERNELS if not options.kernels or kernel.name in options.kernels]
    if options.part is not None:
        for compiled in _compile_part(kernels, options, *options.part):
            print(json.dumps(compiled), flush=True)
        return 0
    count = failed = spilling = 0
    for compiled in _in_processes(options):
        count += 1
        failed += compiled["error"] is not None
        spilling += compiled["spilled"] > 0
        print(json.dumps(compiled) if options.json else _line(compiled), flush=True)
    summary = {"compiled": count, "failed": failed, "spilling": spilling, "targets": options.targets}
    if options.json:
        print(json.dumps({"summary": summary}))
    else:
        print(f"{count} configurations, {failed} failed, {spilling} with spills")
    return 1 if failed or not count else 0


def covering(configurations: "list[Configuration]") -> list[int]:
    """Places of a small subset in which every type and constant of every parameter and every launch option occurs."""
    chosen: list[int] = []
    seen: set[tuple[str, str, object]] = set()
    for place, configuration in enumerate(configurations):
        facts = {
            *((name, "type", kind) for name, kind in configuration.types.items()),
            *((name, "value", value) for name, value in configuration.constants.items()),
            ("num_warps", "option", configuration.num_warps),
            ("num_stages", "option", configuration.num_stages),
        }
        if facts - seen:
            chosen.append(place)
            seen |= facts
    return chosen


def _in_processes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All results, from ``--jobs`` processes of this command with a part of the work each."""
    words = ["--targets", ",".join(map(str, options.targets))]
    words += ["--cover"] if options.cover else []
    words += ["--loops"] if options.loops else []
    words += ["--kernels", *options.kernels] if options.kernels else []
    return in_parts("vllm_kernels.aot", words, options.jobs)


def _compile_part(
    kernels: "list[Kernel]", options: argparse.Namespace, number: int, parts: int
) -> Iterator[dict[str, Any]]:
    from vllm_kernels.triton.compilation import compile_for

    work = []
    for target in options.targets:
        for kernel in kernels:
            configurations = list(kernel.configurations(f"sm_{target}"))
            places = covering(configurations) if options.cover else range(len(configurations))
            work += [(kernel, configurations[place], target) for place in places]
    for kernel, configuration, target in work[number - 1 :: parts]:
        yield compile_for(kernel, configuration, target, options.loops).as_dict()


def _line(compiled: dict[str, Any]) -> str:
    facts = compiled["error"] or (
        f"{compiled['registers']} registers, {compiled['spilled']} bytes spilled, {compiled['shared']} bytes shared"
    )
    for loop in compiled.get("loops", ()):
        matrix = ", ".join(f"{count} {name}" for name, count in loop["matrix"].items()) or "no products of matrices"
        loads = ", ".join(f"{count} of {bits} bits" for bits, count in loop["loads"].items()) or "none"
        facts += f"\n    loop of {loop['instructions']} instructions: {matrix}; loads: {loads}"
    return f"sm_{compiled['target']} {compiled['kernel']} {compiled['configuration']}: {facts}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_kernels.aot", description=__doc__)
    parser.add_argument(
        "--targets", type=targets, default=list(TARGETS), help="compute capabilities, as 80,90,100 (the default)"
    )
    parser.add_argument("--kernels", nargs="+", help="these only")
    parser.add_argument("--cover", action="store_true", help="a subset in which every value of every parameter occurs")
    parser.add_argument("--loops", action="store_true", help="tell what a turn of each innermost loop consists of, too")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    parser.add_argument("--jobs", type=jobs, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--part", type=part, help="in this process, as JSON lines: part 1/4 of the work, say")
    return parser


def targets(text: str) -> list[int]:
    """Type of an option: compute capabilities with commas between."""
    words = text.split(",")
    if not all(word in map(str, TARGETS) for word in words):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(map(str, TARGETS))}, got {text!r}")
    return [int(word) for word in words]


if __name__ == "__main__":
    sys.exit(main())
