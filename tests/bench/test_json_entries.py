"""Files of JSON entries: what is wrong is named with file and line."""

from pathlib import Path

import pytest

from vllm_bench.workload.json_entries import read_lines, read_list_or_lines
from vllm_cli.command import CommandError


def file_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_and_lists_give_the_same_objects_with_their_lines(tmp_path: Path):
    lines = [(entry.line, entry.fields) for entry in read_lines(file_of(tmp_path, '\ufeff{"a": 1}\r\n\r\n{"a": 2}'))]
    assert lines == [(1, {"a": 1}), (3, {"a": 2})]
    for content in ('\n[\n {"a": 1},\n\n {"a":\n 2}\n]\n', '\n\n[{"a": 1}, \n\n{"a": 2}]'):
        entries = list(read_list_or_lines(file_of(tmp_path, content)))
        assert [entry.fields for entry in entries] == [{"a": 1}, {"a": 2}]
        assert [entry.line for entry in entries] == [3, 5]
    assert [entry.fields for entry in read_list_or_lines(file_of(tmp_path, '{"a": 1}\n{"a": 2}'))][1] == {"a": 2}
    assert list(read_list_or_lines(file_of(tmp_path, " [ ] "))) == []
    assert list(read_list_or_lines(file_of(tmp_path, ""))) == []


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ('{"a": 1}\n{"a": 2\n', 2, "no JSON"),
        ('{"a": 1}\n\nnonsense', 3, "no JSON"),
        ('{"a": 1}\n[1]', 2, "no JSON object"),
        ('{"a": ' + "[" * 100_000, 1, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", 1, "too long"),
        ('[{"a": 1},\n{"a": }]', 2, "no JSON"),
        ('[{"a": 1}\n\n{"a": 2}]', 3, "neither a comma nor its end"),
        ('[{"a": 1},\n3]', 2, "no JSON object"),
        ('[{"a": 1},\n', 2, "no JSON"),
        ('[{"a": 1}\n', 2, "neither a comma nor its end"),
        ("[\n" + "[" * 100_000, 2, "nested too deeply"),
    ],
)
def test_what_is_no_entry_is_named_by_its_line(tmp_path: Path, content: str, line: int, what: str):
    path = file_of(tmp_path, content)
    with pytest.raises(CommandError, match=what) as error:
        list(read_list_or_lines(path))
    assert str(error.value).startswith(f"{path}, line {line}: ")
    assert error.value.exit_code == 2


def test_a_list_is_the_whole_file(tmp_path: Path):
    with pytest.raises(CommandError, match="more follows"):
        list(read_list_or_lines(file_of(tmp_path, '[{"a": 1}] {"a": 2}')))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    for path in (tmp_path / "absent", tmp_path, file_of(tmp_path, b"\xff\xfe{}")):
        with pytest.raises(CommandError, match=str(path)) as error:
            list(read_lines(path))
        assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("value", "reader"),
    [
        ("", "text"),
        (1, "text"),
        (None, "text"),
        (0, "length"),
        (1.5, "length"),
        (True, "length"),
        ("1", "length"),
        (10**9, "length"),
        (float("nan"), "number"),
        (float("inf"), "number"),
        (10**400, "number"),
        (True, "number"),
        ({}, "objects"),
        ([1], "objects"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, value: object, reader: str):
    (entry,) = read_lines(file_of(tmp_path, "{}"))
    with pytest.raises(CommandError, match=r"line 1: there is no 'x'"):
        getattr(entry, reader)("x")
    entry.fields["x"] = value
    with pytest.raises(CommandError, match=r"line 1: 'x' is no"):
        getattr(entry, reader)("x")
