"""``vllm collect-env``: print what a bug report needs to say about the machine."""

import json
from argparse import ArgumentParser, Namespace

from vllm_cli.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Add the one option."""
    parser.add_argument("--json", action="store_true", help="print the same facts as one JSON object")


def run(options: Namespace) -> int:
    """Print every section; returns 0."""
    from vllm_cli import environment

    facts_of = environment.collect()
    if options.json:
        print(json.dumps(facts_of, indent=2, ensure_ascii=False))
        return 0
    for section, facts in facts_of.items():
        print(f"{section}:")
        for name, value in facts.items():
            print(f"  {name}: {value}")
        if not facts:
            print("  (nothing)")
    return 0


COMMAND = Command("Print the versions and machine facts that a bug report needs", add_arguments, run)
