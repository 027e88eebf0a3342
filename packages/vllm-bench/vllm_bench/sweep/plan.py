"""The runs of a sweep: which server, which load, and the file of each result."""

import hashlib
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_bench.offline.serve_settings import ServeSettings, read_serve_settings
from vllm_bench.sweep.settings import Combination, combinations, linked
from vllm_cli.command import CommandError
from vllm_cli.option_parser import OptionParser

_BENCH = ["vllm", "bench", "serve"]
_OURS_OF_BENCH = ("base_url", "host", "port", "result_dir", "result_filename", "append_result")
_OURS_OF_SERVER = ("--host", "--port")
_NAME_LETTERS = 120
_PLAIN = ServeSettings(tls=False, api_key=None, has_tokenizer=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure: one that is launched, or one that runs already (no ``command``)."""

    combination: Combination
    command: tuple[str, ...] = ()
    """Without its address."""
    settings: ServeSettings = _PLAIN


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    target: Target
    load: Combination
    words: tuple[str, ...]
    """Options of ``vllm bench serve`` without server and result."""
    number: int
    """From 0 on, among those of the same settings."""
    name: str
    """Of its result's file, without the suffix."""

    @property
    def about(self) -> dict[str, Any]:
        """What the result says of it."""
        settings = {"serve": dict(self.target.combination.settings), "bench": dict(self.load.settings)}
        return {"name": self.name, **settings, "run": self.number}


def plan(options: Namespace) -> list[Run]:
    """All runs, those of one server side by side, and of these each load once before any comes again.

    Raises:
        CommandError: (exit code 2) the settings or the commands cannot be.
    """
    targets = _targets(options)
    loads = combinations(options.bench_params, options.bench_vary, "--bench-vary")
    base = shlex.split(options.bench_cmd)
    if base[:3] != _BENCH:
        raise CommandError(f"--bench-cmd: it must begin with `{' '.join(_BENCH)}`", exit_code=2)
    words = [(*base[3:], *load.words(has_negations=False)) for load in loads]
    for each in words:
        _check(each)
    runs = [
        _run(target, load, load_words, number)
        for target in targets
        for number in range(options.num_runs)
        for load, load_words in zip(loads, words, strict=True)
        if linked(options.link_vars, target.combination, load)
    ]
    if not runs:
        raise CommandError("--link-vars leaves no combination", exit_code=2)
    if len({run.name for run in runs}) < len(runs):
        raise CommandError("two combinations have the same settings", exit_code=2)
    return runs


def _targets(options: Namespace) -> list[Target]:
    if options.base_url is not None:
        for option in ("serve_cmd", "serve_params", "serve_vary"):
            if getattr(options, option):
                name = option.replace("_", "-")
                raise CommandError(f"--{name}: the server of --base-url has its settings already", exit_code=2)
        return [Target(Combination())]
    if options.serve_cmd is None:
        raise CommandError("--serve-cmd or --base-url must say which server is measured", exit_code=2)
    base = shlex.split(options.serve_cmd)
    found = combinations(options.serve_params, options.serve_vary, "--serve-vary")
    return [_target(each, [*base, *each.words(has_negations=True)]) for each in found]


def _target(combination: Combination, command: list[str]) -> Target:
    if not command:
        raise CommandError("--serve-cmd is empty", exit_code=2)
    for word in command:
        if word.partition("=")[0] in _OURS_OF_SERVER:
            raise CommandError(f"{word.partition('=')[0]}: the sweep chooses the server's address", exit_code=2)
    if command[:2] != ["vllm", "serve"]:
        return Target(combination, tuple(command))
    settings = read_serve_settings(command[2:], "bench sweep")
    return Target(combination, (sys.executable, "-m", "vllm_cli", *command[1:]), settings)


def _check(words: Sequence[str]) -> None:
    """Find mistakes before the first server is started; they end the program as they end ``vllm bench serve``."""
    from vllm_bench.serve_options import add_arguments, check

    parser = OptionParser(prog="vllm bench serve")
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    options = parser.parse_args(list(words))
    for name in _OURS_OF_BENCH:
        if getattr(options, name) != defaults[name]:
            raise CommandError(f"--{name.replace('_', '-')}: the sweep chooses server and result itself", exit_code=2)
    options.save_result = True
    check(options)


def _run(target: Target, load: Combination, words: tuple[str, ...], number: int) -> Run:
    # Of the whole commands: a result of other ones is never taken for this run's.
    digest = hashlib.sha256(json.dumps([target.command, words]).encode()).hexdigest()[:10]
    parts = [part for part in (target.combination.name, load.name) if part]
    name = _file_name("--".join(parts) or "run")
    return Run(target, load, words, number, f"{name}--{digest}--run{number}")


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._=" else "_" for letter in text)[:_NAME_LETTERS]
