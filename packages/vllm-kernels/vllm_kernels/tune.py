"""``python -m vllm_kernels.tune``: time what may be chosen for each kernel on this GPU, and write its family's table.

For each kernel and class of shapes, candidates are run, compared with float64, and timed, the nearest to the present
rule first, until its share of the time is used up. The table goes to the folder of VLLM_KERNELS_TUNING, else to that of
the wheel, and has the device's name. Without a GPU, --dry-run does all but that: it compiles the candidates, drops
those that do not compile, do not fit shared memory or spill registers, and lists what is left; --write then chooses by
the compiler's figures. Exit code 1 when a class has no candidate left.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_kernels.aot import TARGETS, targets
from vllm_kernels.in_parts import in_parts, jobs, part

if TYPE_CHECKING:
    from vllm_kernels.triton.tuning import Entry, ShapeClass, Tunable


def main(arguments: list[str] | None = None) -> int:
    """Tune as the command line says. The exit code: 0, 1 where a class has no choice, 2 where nothing can run."""
    options = _parser().parse_args(arguments)
    try:
        from vllm_kernels.triton.catalogue import TUNABLES
    except ImportError as error:
        return _refused(f"triton cannot be imported: {error}")
    names = sorted(tunable.kernel for tunable in TUNABLES)
    if not set(options.kernels or ()) <= set(names):
        return _refused(f"--kernels must be of {', '.join(names)}")
    tunables = [tunable for tunable in TUNABLES if not options.kernels or tunable.kernel in options.kernels]
    if options.part is not None:
        for line in _compile_part(tunables, options.targets, options.most, *options.part):
            print(json.dumps(line), flush=True)
        return 0
    if options.dry_run:
        return _dry_run(tunables, options)
    if not torch.cuda.is_available():
        return _refused("there is no GPU to time kernels on; --dry-run compiles the candidates and lists them")
    return _measure(tunables, options)


def _refused(reason: str) -> int:
    print(f"vllm_kernels.tune: error: {reason}", file=sys.stderr)
    return 2


def _trials(tunables: "list[Tunable]", family: str) -> "list[tuple[Tunable, ShapeClass]]":
    return [(tunable, shape) for tunable in tunables for shape in tunable.classes(family)]


def _compile_part(
    tunables: "list[Tunable]", of_targets: list[int], most: int, number: int, parts: int
) -> Iterator[dict[str, Any]]:
    from vllm_kernels.triton.candidates import candidates_of, facts_of
    from vllm_kernels.triton.catalogue import KERNELS

    kernels = {kernel.name: kernel for kernel in KERNELS}
    work = [
        (f"sm_{target}", tunable, shape)
        for target in of_targets
        for tunable, shape in _trials(tunables, f"sm_{target}")
    ]
    for family, tunable, shape in work[number - 1 :: parts]:
        for choice in candidates_of(tunable, shape, family, most):
            facts = facts_of(kernels[tunable.kernel], tunable, shape, choice, family)
            yield {"family": family, "kernel": tunable.kernel, "class": shape, "choice": choice, **asdict(facts)}


def _dry_run(tunables: "list[Tunable]", options: argparse.Namespace) -> int:
    from vllm_kernels.triton.tuning import Entry

    words = ["--targets", ",".join(map(str, options.targets)), "--most", str(options.most)]
    words += ["--kernels", *options.kernels] if options.kernels else []
    lines = list(in_parts("vllm_kernels.tune", words, options.jobs))
    known = {tunable.kernel: tunable for tunable in tunables}
    chosen: dict[str, list[Entry]] = {f"sm_{target}": [] for target in options.targets}
    without = 0
    order = {tunable.kernel: place for place, tunable in enumerate(tunables)}
    lines.sort(key=lambda line: (line["family"], order[line["kernel"]], json.dumps(line["class"])))
    for (family, name, _), group in itertools.groupby(lines, key=lambda line: _class_of(line)):
        of_class = list(group)
        best = _by_compiler(known[name], of_class, family)
        if options.json:
            for line in of_class:
                print(json.dumps({**line, "chosen": best is not None and line["choice"] == best["choice"]}))
        else:
            print(_summary(of_class, best))
        if best is None:
            without += 1
        else:
            chosen[family].append(Entry(name, best["class"], best["choice"], "compiled"))
    if options.write and not without:
        for family, entries in chosen.items():
            print(_write(family, None, entries, options.output))
    return 1 if without or not lines else 0


def _class_of(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["family"], line["kernel"], json.dumps(line["class"])


def _by_compiler(tunable: "Tunable", lines: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The candidate of a class that the compiler's figures speak for; None where none compiles and fits."""
    from vllm_kernels.triton.candidates import Facts, rank

    def place(line: dict[str, Any]) -> tuple[Any, ...]:
        facts = Facts(**{fact.name: line[fact.name] for fact in fields(Facts)})
        shape, choice = line["class"], line["choice"]
        return rank(choice, facts, tunable.work(**shape, **choice), tunable.rule(**shape), family)

    usable = [line for line in lines if line["error"] is None]
    return min(usable, key=place, default=None)


def _summary(lines: list[dict[str, Any]], best: dict[str, Any] | None) -> str:
    first = lines[0]
    failed = sum(line["error"] is not None for line in lines)
    spilling = sum(line["error"] is None and line["spilled"] > 0 for line in lines)
    words = f"{first['family']} {first['kernel']} {_words(first['class'])}: {len(lines)} candidates"
    words += f", {failed} do not compile or fit, {spilling} spill"
    if best is None:
        return f"{words}; none is left"
    took = f"{best['registers']} registers, {best['spilled']} bytes spilled, {best['shared']} bytes shared"
    took += f", {best['instructions']} instructions a turn"
    return f"{words}; {_words(best['choice'])} ({took})"


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _measure(tunables: "list[Tunable]", options: argparse.Namespace) -> int:
    """Time candidates on the device."""
    from vllm_kernels.benchmarks.timing import device_name
    from vllm_kernels.triton.device import family_of
    from vllm_kernels.triton.tuning import Entry

    device = torch.device("cuda", torch.cuda.current_device())
    family = family_of(device)
    trials = _trials(tunables, family)
    until = time.monotonic() + options.seconds
    entries, without = [], 0
    for number, (tunable, shape) in enumerate(trials):
        now = time.monotonic()
        share = max(0.0, until - now) / (len(trials) - number)
        best, timed = best_of(tunable, shape, family, device, options.most, now + share)
        if best is None:
            without += 1
            print(f"{tunable.kernel} {_words(dict(shape))}: none of {timed} candidates computes the right values")
            continue
        choice, seconds = best
        entries.append(Entry(tunable.kernel, shape, choice, "measured"))
        print(
            f"{tunable.kernel} {_words(dict(shape))}: {_words(choice)}, {seconds * 1e6:.1f} us, of {timed}", flush=True
        )
    print(_write(family, device_name(device), entries, options.output))
    return 1 if without or not entries else 0


def best_of(
    tunable: "Tunable", shape: "ShapeClass", family: str, device: torch.device, most: int, until: float
) -> tuple[tuple[dict[str, int], float] | None, int]:
    """The fastest candidate of a class with its seconds, and how many were tried before ``until`` (at least one).

    One that computes wrong values, or that does not compile or fit the device, is none.
    """
    from triton.errors import TritonError

    from vllm_kernels.benchmarks.case import relative_error
    from vllm_kernels.benchmarks.timing import median_seconds
    from vllm_kernels.benchmarks.workloads import workload
    from vllm_kernels.triton.candidates import candidates_of
    from vllm_kernels.triton.tuning import forced

    case = workload(tunable.kernel, shape, device)
    truth = case.truth()
    best: tuple[dict[str, int], float] | None = None
    tried = 0
    for choice in candidates_of(tunable, shape, family, most):
        if tried and time.monotonic() > until:
            break
        tried += 1
        with forced(tunable, shape, choice):
            try:
                right = relative_error(case.checked(case.run()), truth) <= case.tolerance
            except (RuntimeError, TritonError):
                continue
            if not right:
                continue
            seconds = median_seconds(case.run)
        if best is None or seconds < best[1]:
            best = choice, seconds
    return best, tried


def _write(family: str, device: str | None, entries: "list[Entry]", folder: Path | None) -> str:
    """Write a table, in which classes that were left out keep what they have. Returns a line that says so."""
    from vllm_kernels.triton.catalogue import TUNABLES
    from vllm_kernels.triton.tuning import FOLDER, VARIABLE, Table, check, read_table, table_file

    known = {tunable.kernel: tunable for tunable in TUNABLES}
    file = table_file(family)
    before = read_table(file) if file is not None else Table(family, None, ())
    new = {known[entry.kernel].key(entry.shape): entry for entry in entries}
    kept = {known[entry.kernel].key(entry.shape): entry for entry in before.entries}
    table = Table(family, device or before.device, tuple((kept | new).values()))
    check(table, TUNABLES)
    target = Path(folder or os.environ.get(VARIABLE) or FOLDER) / f"{family}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    table.save(target)
    return f"{target}: {len(new)} of {len(table.entries)} entries are new"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_kernels.tune", description=__doc__)
    parser.add_argument("--kernels", nargs="+", help="these only")
    parser.add_argument("--seconds", type=float, default=900, help="for all (default: %(default)s)")
    parser.add_argument("--most", type=jobs, default=32, help="candidates of a class (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the table")
    parser.add_argument("--dry-run", action="store_true", help="compile candidates and list them; needs no GPU")
    parser.add_argument("--write", action="store_true", help="with --dry-run: write what the compiler's figures say")
    parser.add_argument("--targets", type=targets, default=list(TARGETS), help="with --dry-run: as 80,90,100")
    parser.add_argument("--json", action="store_true", help="with --dry-run: JSON lines, one for each candidate")
    parser.add_argument("--jobs", type=jobs, default=os.cpu_count() or 1, help="with --dry-run: processes")
    parser.add_argument("--part", type=part, help="in this process, as JSON lines: part 1/4 of the dry run, say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
