"""The files of a batch: the journal that the next run takes up, and the output that appears when it is complete."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from tests.server.batch_folder import KEY, Folder, answer, line, work_on
from tests.server.fake_llm import FakeLLM
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_server.batch.config import answers_digest, create_batch_config
from vllm_server.batch.errors import BatchFileError
from vllm_server.batch.input import open_input
from vllm_server.batch.journal import Journal, JournalPlace, RunKey
from vllm_server.batch.output import FileOutput

LINES = [*(line(str(index), prompt="hi", max_tokens=2) for index in range(4)), "wrong", line("last", prompt="!fail")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write(*LINES)
    return folder


def output_of(folder: Folder, path: Path | None = None, tmp_dir: Path | None = None) -> FileOutput:
    return FileOutput(str(path or folder.output), str(tmp_dir) if tmp_dir else None, not_over=str(folder.input))


async def journal_of_all(folder: Folder) -> Path:
    """A journal with all answers, as a run leaves it that ends before the output gets its name."""
    with open_input(str(folder.input)) as source, Journal(output_of(folder).place, KEY) as journal:
        await work_on(FakeLLM(), source, journal).run()
    return journal.path


# ---- the output ----


async def test_the_output_replaces_an_older_one_only_when_it_is_complete(folder: Folder) -> None:
    folder.output.write_text("old\n")
    link = folder.path / "link.jsonl"
    link.symlink_to(folder.output)
    for delivers in (False, True):
        output = output_of(folder, link)
        with Journal(output.place, KEY) as journal:
            journal.write(b"new\n", failed=False)
            assert folder.output.read_text() == "old\n"
            assert journal.path.name == "out.jsonl.111111111111-22222222.partial"
            if delivers:
                await output.deliver(journal)
        assert len(folder.partial) == (not delivers)
    assert link.is_symlink()
    assert folder.output.read_text() == "new\nnew\n"


def test_nothing_is_left_of_a_run_without_an_answer(folder: Folder) -> None:
    with Journal(output_of(folder).place, KEY):
        assert len(folder.partial) == 1
    assert list(folder.path.iterdir()) == [folder.input]


async def test_a_folder_of_its_own_holds_the_answers_of_several_outputs(folder: Folder) -> None:
    own = folder.path / "own"
    own.mkdir()
    (folder.path / "other").mkdir()
    other = folder.path / "other" / "out.jsonl"
    outputs = [output_of(folder, path, own) for path in (folder.output, other)]
    with Journal(outputs[0].place, KEY) as one, Journal(outputs[1].place, RunKey("3" * 64, "4" * 64)) as two:
        for journal, text in ((one, b"one\n"), (two, b"two\n")):
            journal.write(text, failed=False)
        assert {path.parent for path in folder.path.rglob("*.partial")} == {own}
        await outputs[0].deliver(one)
        await outputs[1].deliver(two)
    assert (folder.output.read_text(), other.read_text()) == ("one\n", "two\n")
    assert list(own.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system")
async def test_the_folder_may_be_on_another_file_system(folder: Folder) -> None:
    output = output_of(folder, tmp_dir=Path("/dev/shm"))
    with Journal(output.place, KEY) as journal:
        journal.write(b"new\n", failed=False)
        await output.deliver(journal)
        assert not journal.path.exists()
    assert folder.output.read_text() == "new\n"
    assert sorted(folder.path.iterdir()) == [folder.input, folder.output]


async def test_what_anybody_may_read_by_default_is_decided_by_the_umask(folder: Folder) -> None:
    output = output_of(folder)
    with Journal(output.place, KEY) as journal:
        await output.deliver(journal)
    assert folder.output.stat().st_mode & 0o777 == folder.input.stat().st_mode & 0o777


# ---- resuming ----


async def test_wherever_the_last_line_is_torn_nothing_is_lost_and_nothing_is_there_twice(folder: Folder) -> None:
    path = await journal_of_all(folder)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, *ends, *(end - 1 for end in ends), *(end + 7 for end in ends[:-1]), *range(ends[1], ends[2], 17)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with open_input(str(folder.input)) as source, Journal(output_of(folder).place, KEY) as journal:
            lines = source.lines()
            await journal.resume(lines)
            num_whole = sum(end <= cut for end in ends)
            assert journal.num_answers == num_whole
            assert path.read_bytes() == whole[: ends[num_whole - 1] if num_whole else 0]
            work = work_on(FakeLLM(), source, journal)
            work._lines = lines
            await work.run()
        assert (journal.num_answers, journal.num_failed) == (6, 2)
        assert [result["custom_id"] for result in folder.results(path)] == ["0", "1", "2", "3", None, "last"]


@pytest.mark.parametrize("change", ["leaves one out", "writes one twice", "writes nonsense", "adds one"])
async def test_a_journal_that_someone_has_changed_is_told_and_kept(folder: Folder, change: str) -> None:
    path = await journal_of_all(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "leaves one out": lines[1:],
        "writes one twice": lines[:1] + lines,
        "writes nonsense": [b"nonsense\n", *lines],
        "adds one": [*lines, lines[0]],
    }[change]
    path.write_bytes(b"".join(changed))
    with (
        open_input(str(folder.input)) as source,
        pytest.raises(ConfigError, match=r"line \d of .*\.partial is no answer to the line of the input that is due"),
        Journal(output_of(folder).place, KEY) as journal,
    ):
        await journal.resume(source.lines())
    assert path.read_bytes() == b"".join(changed)


async def test_answers_to_another_input_or_of_another_model_are_told_and_kept(folder: Folder) -> None:
    path = await journal_of_all(folder)
    for key, field, what in (
        (RunKey("9" * 64, KEY.settings), "input_file", "has answers to another input than this one; delete it"),
        (RunKey(KEY.input, "9" * 64), "output_file", "has answers to the same input, but of another model or other"),
    ):
        with pytest.raises(ConfigError) as caught, Journal(output_of(folder).place, key):
            pass
        assert caught.value.field == field
        assert str(caught.value).startswith(f"{path} {what}")
    assert folder.partial == [path]


def test_two_runs_do_not_write_one_output(folder: Folder) -> None:
    place = output_of(folder).place
    with Journal(place, KEY) as first:
        with pytest.raises(ConfigError, match="output_file: another run is writing "), Journal(place, KEY):
            pass
        assert first.path.exists()
    with Journal(place, KEY):
        pass


async def test_a_journal_that_became_the_output_meanwhile_is_not_written_to(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run may open the file just before the first gives it its name, and get the lock just after."""
    output = output_of(folder)
    with Journal(output.place, KEY) as journal:
        journal.write(b"done\n", failed=False)
        real_open = os.open
        opened = []

        def slow_open(path: object, *args: object, **more: object) -> int:
            descriptor = real_open(path, *args, **more)  # type: ignore[arg-type]
            if path == journal.path and not opened:
                opened.append(path)
                os.replace(journal.path, folder.output)
                fcntl.flock(journal._file, fcntl.LOCK_UN)
            return descriptor

        monkeypatch.setattr("vllm_server.batch.journal.os.open", slow_open)
        with Journal(output.place, KEY) as second:
            second.write(b"second\n", failed=False)
    assert folder.output.read_bytes() == b"done\n"
    assert second.path.read_bytes() == b"second\n"


# ---- the input ----


async def test_an_input_that_changes_while_it_is_read_ends_the_run(folder: Folder) -> None:
    with open_input(str(folder.input)) as source, Journal(output_of(folder).place, KEY) as journal:
        work = work_on(FakeLLM(delay=0.01), source, journal, in_flight=1)
        running = asyncio.create_task(work.run())
        while not journal.num_answers:
            await asyncio.sleep(0.005)
        with folder.input.open("a") as file:
            file.write(LINES[0] + "\n")
        with pytest.raises(BatchFileError, match=r"in\.jsonl was changed while it was read"):
            await running


async def test_the_digest_is_that_of_the_bytes(folder: Folder) -> None:
    seen = []
    for content in (b"a\nb\n", b"a\nb", b"a\n\n \r\nb\n", b"b\na\n", b"", b"a\n" * 5000):
        folder.input.write_bytes(content)
        with open_input(str(folder.input)) as source:
            await source.examine()
            assert (
                source.num_lines == len(list(source.lines())) == sum(bool(one.strip()) for one in content.split(b"\n"))
            )
            seen.append(source.digest)
    assert len(set(seen)) == len(seen)


def test_settings_that_shape_answers_are_known_from_those_that_do_not() -> None:
    def digest(**options: object) -> str:
        own = {name: options.pop(name) for name in ("response_role", "output_tmp_dir", "port") if name in options}
        engine = EngineArgs(**{"model": "demo", **options}).create_config()  # type: ignore[arg-type]
        return answers_digest(engine, create_batch_config({"input_file": "a", "output_file": "b", **own}), None)

    same = [{}, {"max_num_seqs": 3}, {"kv_cache_memory_bytes": "16M"}, {"output_tmp_dir": "/x"}, {"port": 1}]
    other = [{"response_role": "bot"}, {"dtype": "float32"}, {"served_model_name": ["x"]}, {"quantization": "int8"}]
    assert len({digest(**options) for options in same}) == 1
    assert len({digest(**options) for options in (*other, {})}) == len(other) + 1


async def test_a_finished_output_is_made_again_when_asked(folder: Folder) -> None:
    for _ in range(2):
        assert await answer(folder, FakeLLM(), *LINES) == (6, 2)
        assert len(folder.results()) == 6
        assert folder.partial == []


def test_the_place_of_a_journal_is_checked(folder: Folder) -> None:
    place = JournalPlace(folder.path / "no", "out.jsonl", "output_tmp_dir")
    with pytest.raises(ConfigError, match=r"output_tmp_dir: cannot write to .*/no: No such file"), Journal(place, KEY):
        pass
