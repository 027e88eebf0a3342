"""``--dataset-name prompt-file``: the lines of a text file, in their order, again from the first after the last."""

import itertools
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.text import TextSource
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    import numpy

_DEFAULT_OUTPUT_LEN = 128


class PromptFile:
    """See ``Dataset``. Without end."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--prompt-file``."""
        parser.add_argument(
            "--prompt-file", type=Path, metavar="FILE", help="prompt-file: prompts, one a line (implies the dataset)"
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        file = options.prompt_file
        if file is None:
            raise CommandError("--dataset-name prompt-file needs --prompt-file FILE", exit_code=2)
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--prompt-file {file}: {error}", exit_code=2) from error
        if not lines:
            raise CommandError(f"--prompt-file {file} holds no prompt", exit_code=2)
        output_len = options.output_len or _DEFAULT_OUTPUT_LEN
        return itertools.cycle(WorkItem(line, text.count(line), output_len) for line in lines)


DATASET = PromptFile()
