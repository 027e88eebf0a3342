import abc
import sys
from pathlib import Path

import pytest

from vllm_engine.config.import_path import load_class
from vllm_engine.errors import ConfigError

MODULE = """
import abc
from collections import OrderedDict

class Good(OrderedDict):
    class Inner(OrderedDict):
        pass

class Other:
    pass

class Half(OrderedDict, abc.ABC):
    @abc.abstractmethod
    def missing(self): ...

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "named_by_path"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(MODULE)
    (folder / "needs_more.py").write_text("import a_module_that_nobody_has\n")
    (folder / "raises.py").write_text("raise RuntimeError('no licence')\n")
    (folder / "leaves.py").write_text("raise SystemExit(7)\n")
    (folder / "wrong.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "named_by_path"]:
        del sys.modules[name]


@pytest.mark.parametrize("path", ["named_by_path.good:Good", "named_by_path.good.Good"])
def test_both_spellings_find_the_class(package: Path, path: str) -> None:
    found = load_class("worker_cls", path, dict)
    assert (found.__module__, found.__qualname__) == ("named_by_path.good", "Good")
    assert found({1: 2})[1] == 2


def test_a_class_inside_a_class_is_found_after_a_colon(package: Path) -> None:
    assert load_class("worker_cls", "named_by_path.good:Good.Inner", dict).__qualname__ == "Good.Inner"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "must be an import path such as package.module:Class, got ''"),
        ("Good", "must be an import path such as package.module:Class, got 'Good'"),
        (":Good", "must be an import path"),
        ("named_by_path.good:", "must be an import path"),
        ("named_by_path/good.py:Good", "must be an import path"),
        (".good:Good", "must be an import path"),
        ("named_by_path.good:Good()", "must be an import path"),
        ("a:b:c", "must be an import path"),
        ("nowhere_to_be_found.x:Good", "there is no module nowhere_to_be_found "),
        ("named_by_path.absent:Good", "there is no module named_by_path.absent "),
        ("named_by_path.good.Good.Inner", "there is no module named_by_path.good.Good "),
        ("named_by_path.good:Absent", "module named_by_path.good has no Absent"),
        ("named_by_path.good.Absent", "module named_by_path.good has no Absent"),
        ("named_by_path.good:Good.Absent", "module named_by_path.good has no Good.Absent"),
        ("named_by_path.good:number", "must be a class derived from builtins.dict, not a value of type int"),
        ("named_by_path.good:Other", "must be a class derived from builtins.dict"),
        ("named_by_path.good:Half", "must define missing"),
        ("named_by_path.needs_more:Good", "No module named 'a_module_that_nobody_has'"),
        ("named_by_path.raises:Good", "module named_by_path.raises raised RuntimeError: no licence"),
        ("named_by_path.leaves:Good", "module named_by_path.leaves raised SystemExit: 7"),
        ("named_by_path.wrong:Good", "module named_by_path.wrong raised SyntaxError"),
    ],
)
def test_a_path_that_leads_to_no_such_class_is_the_settings_error(package: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_class("worker_cls", path, dict)
    assert str(caught.value).startswith("worker_cls")
    assert message in str(caught.value)
    assert caught.value.field == "worker_cls"


class Base(abc.ABC):
    @abc.abstractmethod
    def run(self) -> None: ...


def test_the_base_itself_is_refused_when_it_is_abstract() -> None:
    with pytest.raises(ConfigError, match="must define run"):
        load_class("scheduler_cls", f"{__name__}:Base", Base)
