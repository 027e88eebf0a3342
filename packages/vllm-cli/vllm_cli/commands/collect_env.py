"""``vllm collect-env``: print what a bug report needs to say about the machine."""

from argparse import ArgumentParser, Namespace

from vllm_cli.command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """``vllm collect-env`` has no options."""


def run(options: Namespace) -> int:
    """Print every section; returns 0."""
    from vllm_cli import environment

    for section, facts in environment.collect().items():
        print(f"{section}:")
        for name, value in facts.items():
            print(f"  {name}: {value}")
        if not facts:
            print("  (nothing)")
    return 0


COMMAND = Command("Print the versions and machine facts that a bug report needs", add_arguments, run)
