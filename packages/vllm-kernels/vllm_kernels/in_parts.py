"""A command's work cut into parts, each done by a process of its own: compilers of one process wait for one another."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_parts(module: str, words: list[str], jobs: int) -> Iterator[dict[str, Any]]:
    """All results of ``python -m module words --part 1/jobs`` and so on: each line is a JSON object.

    Raises ``subprocess.CalledProcessError`` when one of them ends before its time.
    """

    def part(number: int) -> str:
        command = [sys.executable, "-m", module, *words, "--part", f"{number}/{jobs}"]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    with ThreadPoolExecutor(jobs) as pool:
        for shown in pool.map(part, range(1, jobs + 1)):
            yield from map(json.loads, shown.splitlines())


def jobs(text: str) -> int:
    """Type of an option: a number of processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """Type of an option: which part of how many."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be like 1/4, got {text!r}")
    return int(number), int(parts)
