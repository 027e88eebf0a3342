"""Texts of random tokens by the model's own tokenizer, read with ``tokenizers`` (extra ``vllm-bench[tokenizer]``)."""

from pathlib import Path

import numpy

from vllm_bench.workload.text import CountedText
from vllm_cli.command import CommandError

_ATTEMPTS = 10


class TokenizerText:
    """Random tokens as text that has as many tokens again.

    Args:
        path: a ``tokenizer.json``, or the folder that holds it.

    Raises:
        CommandError: (exit code 2) it cannot be read, or ``tokenizers`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise CommandError('--tokenizer needs: pip install "vllm-bench[tokenizer]"', exit_code=2) from error
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise CommandError(f"--tokenizer {path}: there is no tokenizer.json", exit_code=2)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise CommandError(f"--tokenizer {file}: {error}", exit_code=2) from error
        self.name = str(path)
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids = numpy.array([number for number in range(self._tokenizer.get_vocab_size()) if number not in special])

    def make(self, num_tokens: int, rng: numpy.random.Generator) -> CountedText:
        """See ``TextSource``. As text they may be cut into others: it is trimmed or filled up until it fits."""
        ids = rng.choice(self._ids, size=num_tokens).tolist()
        for _ in range(_ATTEMPTS):
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == num_tokens:
                break
            ids = ids[:num_tokens] + rng.choice(self._ids, size=max(0, num_tokens - len(ids))).tolist()
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        return CountedText(text, self.count(text))

    def count(self, text: str) -> int:
        """See ``TextSource``."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
