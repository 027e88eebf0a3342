"""Settings that a sweep varies: where they are written, how they combine, and the flags that they become."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_cli.command import CommandError

_NAME = "_benchmark_name"


@dataclass(frozen=True, slots=True)
class Combination:
    """One choice of settings, under the names that the user gave them."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    given_name: str | None = None

    @property
    def name(self) -> str:
        """The given one, else made of the settings."""
        return self.given_name or "-".join(f"{key}={_spelled(value)}" for key, value in self.settings.items())

    def value(self, name: str) -> Any:
        """The setting called ``name``, whichever of - and _ it is written with; None if there is none."""
        return next((value for key, value in self.settings.items() if _plain(key) == _plain(name)), None)

    def words(self, *, has_negations: bool) -> list[str]:
        """The settings as flags: ``true`` is the flag alone, null none at all, a list several words, an object JSON.

        Args:
            has_negations: ``false`` is ``--no-flag``, else no flag.
        """
        words = []
        for key, value in self.settings.items():
            flag = key.replace("_", "-")
            if value is True:
                words.append(f"--{flag}")
            elif value is False and has_negations:
                words.append(f"--no-{flag}")
            elif isinstance(value, list):
                words += [f"--{flag}", *map(_spelled, value)]
            elif value is not None and value is not False:
                words.append(f"--{flag}={_spelled(value)}")
        return words


def combinations(path: Path | None, varied: Sequence[Sequence[str]], option: str) -> list[Combination]:
    """Those of a file, each with each combination of the ``varied``; one without settings where there is neither.

    Args:
        path: JSON or YAML: a list of objects, each a combination; an object of such objects by name; or an object of
            lists, of which every combination is taken.
        varied: names, each followed by its values.
        option: who is to blame for the latter, for messages.

    Raises:
        CommandError: (exit code 2) a file or an option does not say that.
    """
    found = [Combination()] if path is None else _read(path)
    grid = {words[0].lstrip("-"): [_value(word) for word in words[1:]] for words in varied}
    if len(grid) < len(varied) or not all(grid.values()):
        raise CommandError(f"{option} takes a name and its values, and each name once", exit_code=2)
    if twice := [name for name in grid if any(each.value(name) is not None for each in found)]:
        raise CommandError(f"{option} {twice[0]}: the file varies that, too", exit_code=2)
    return [
        Combination({**one.settings, **more.settings}, _joined(one.given_name, more.name))
        for one, more in itertools.product(found, _products(grid))
    ]


def linked(pairs: Iterable[tuple[str, str]], serve: Combination, bench: Combination) -> bool:
    """Whether both settings of each pair, of the server and of the load, are the same."""
    return all(serve.value(of_server) == bench.value(of_load) for of_server, of_load in pairs)


def _read(path: Path) -> list[Combination]:
    content = _content(path)
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        return [_combination(value, path, name) for name, value in content.items()]
    if isinstance(content, dict) and content and all(isinstance(value, list) and value for value in content.values()):
        return _products(content)
    if isinstance(content, list) and content and all(isinstance(value, dict) for value in content):
        found = [_combination(value, path, value.get(_NAME)) for value in content]
        names = [each.given_name for each in found if each.given_name is not None]
        if len(set(names)) < len(names):
            raise CommandError(f"{path}: two combinations have the same {_NAME}", exit_code=2)
        return found
    raise CommandError(
        f"{path} is neither a list of objects of settings, nor an object of such objects by name, nor an object with a "
        "list of values for each setting",
        exit_code=2,
    )


def _content(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix not in (".yaml", ".yml"):
            return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"{path}: {error}", exit_code=2) from error
    try:
        import yaml
    except ImportError as error:
        raise CommandError(f'{path}: YAML needs: pip install "vllm-bench[yaml]"', exit_code=2) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise CommandError(f"{path}: {error}", exit_code=2) from error


def _combination(settings: dict[str, Any], path: Path, name: object) -> Combination:
    if name is not None and not isinstance(name, str):
        raise CommandError(f"{path}: the name {name!r} is no text", exit_code=2)
    return Combination({str(key): value for key, value in settings.items() if key != _NAME}, name)


def _products(grid: Mapping[str, list[Any]]) -> list[Combination]:
    return [Combination(dict(zip(map(str, grid), values, strict=True))) for values in itertools.product(*grid.values())]


def _joined(given: str | None, more: str) -> str | None:
    return given if given is None or not more else f"{given}-{more}"


def _value(word: str) -> Any:
    """``true``, ``false`` and ``null`` are meant as such; all else stays as it is typed."""
    return {"true": True, "false": False, "null": None}.get(word, word)


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(name: str) -> str:
    return name.replace("_", "-")
