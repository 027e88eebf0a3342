"""``vllm run-batch`` killed at any moment, again and again: the output is that of a run that nobody disturbed."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.batch_folder import Folder, line, start

KILLS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def lines(count: int, seed: int) -> list[str | bytes]:
    """Requests of several lengths, lines that are wrong, blank ones, and equal ids."""
    pick = random.Random(seed)
    kinds: list[str | bytes] = [
        "not JSON",
        "",
        '{"custom_id": "no body"}',
        line("refused", prompt=3),
        b"\xff\xfe",
        "[]",
    ]
    return [
        pick.choice(kinds)
        if pick.random() < 0.2
        else line(str(pick.randrange(50)), prompt="hi" * pick.randrange(20), max_tokens=pick.randrange(1, 6), n=2)
        for _ in range(count)
    ]


def without_chance(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what is new in each run: ids and times."""
    response = result["response"]
    body = {name: value for name, value in response["body"].items() if name not in ("id", "created")}
    return {**result, "id": "", "response": {**response, "request_id": "", "body": body}}


def test_after_kills_at_random_moments_the_output_is_that_of_an_undisturbed_run(folder: Folder) -> None:
    given = lines(300, seed=5)
    folder.write(*given)
    flags = ["-i", str(folder.input), "-o", str(folder.output), "--max-inflight", "3"]
    with start("-i", str(folder.input), "-o", str(folder.path / "whole.jsonl")) as process:
        summary = process.communicate(timeout=30)[0].splitlines()[-1]
    expected = [without_chance(result) for result in folder.results(folder.path / "whole.jsonl")]
    assert len(expected) == sum(bool(one.strip()) for one in given)

    pick = random.Random()
    grown = []
    for _ in range(KILLS):
        with start(*flags, delay=0.004) as process:
            before = sum(path.stat().st_size for path in folder.partial)
            deadline = time.monotonic() + 20
            while sum(path.stat().st_size for path in folder.partial) <= before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(pick.uniform(0, 0.15))
            process.kill()
            process.communicate()
        assert not folder.output.exists()
        (partial,) = folder.partial
        if pick.random() < 0.5:  # the end of a write that the kill has cut
            content = partial.read_bytes()
            partial.write_bytes(content[: len(content) - pick.randrange(80)])
        grown.append(partial.read_bytes().count(b"\n"))
    assert grown == sorted(grown) and grown[-1] > grown[0]

    with start(*flags) as process:
        out, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert f"{grown[-1]} of {len(expected)} answers are there from an earlier run: {partial}" in error
    assert [without_chance(result) for result in folder.results()] == expected
    assert out.splitlines()[-1] == summary.replace("whole", "out")
    assert folder.partial == []


def test_a_run_that_was_killed_before_the_output_had_its_name_needs_no_engine(folder: Folder) -> None:
    """Whatever stands in the way of the output is taken away by hand, and the next run delivers at once."""
    folder.write(line("a", prompt="hi", max_tokens=1))
    flags = ["-i", str(folder.input), "-o", str(folder.output), "--max-inflight", "1"]
    with start(*flags, delay=0.5) as process:
        while not folder.partial and process.poll() is None:
            time.sleep(0.01)
        folder.output.mkdir()
        _, error = process.communicate(timeout=20)
    (partial,) = folder.partial
    assert process.returncode == 1
    assert f"cannot write {folder.output}: Is a directory; 1 answers are in {partial}" in error
    answers = partial.read_bytes()
    folder.output.rmdir()
    with start(*flags, fails="dead") as process:
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, f"1 requests, 0 failed: {folder.output}\n"), error
    assert folder.output.read_bytes() == answers


def test_another_input_or_model_is_noticed_before_the_engine_starts(folder: Folder) -> None:
    folder.write(*(line(str(index), prompt="hi", max_tokens=200) for index in range(100)))
    flags = ["-i", str(folder.input), "-o", str(folder.output), "--max-inflight", "1"]
    with start(*flags, delay=0.001) as process:
        while not any(path.stat().st_size for path in folder.partial) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    (partial,) = folder.partial
    content = partial.read_bytes()
    for changed, message in (
        (["--response-role", "bot"], f"--output-file: {partial} has answers to the same input, but of another model"),
        ([], f"--input-file: {partial} has answers to another input than this one; delete it"),
    ):
        if not changed:
            folder.input.write_text(folder.input.read_text().replace("hi", "ho", 1))
        with start(*flags, *changed, fails="dead") as process:
            _, error = process.communicate(timeout=20)
        assert process.returncode == 2
        assert error.startswith(f"vllm run-batch: error: {message}")
    assert json.loads(content.splitlines()[0])["custom_id"] == "0"
    assert folder.partial == [partial] and partial.read_bytes() == content
