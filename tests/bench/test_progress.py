"""What is shown of a run while it goes."""

import asyncio
import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.mock_server import Plan, running
from vllm_bench.load.progress import Progress, _Counts
from vllm_bench.load.run import LoadRun
from vllm_bench.records import RequestRecord

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, total: int | None, seconds: float | None) -> list[str]:
    """Lines of a run of two seconds so far: two requests done, one failed, one under way."""
    now = time.perf_counter()
    run = LoadRun(began=now - 2)
    for number in range(4):
        record = RequestRecord(now - 2, now - 2, text_times=[now - 1, now - 0.5], ended=now if number < 3 else 0.0)
        record.error = "no" if number == 2 else None
        record.completion_tokens = 10 if number < 2 else None
        run.records.append(record)

    async def look() -> None:
        task = asyncio.create_task(Progress(total, seconds, stream, interval=0.02).follow(run))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(look())
    return stream.getvalue().replace("\r", "\n").split("\n")


def test_plain_lines_where_nobody_looks_at_a_terminal():
    line = shown(io.StringIO(), 10, None)[0]
    assert line.startswith(" 30% 3 of 10 requests, 1 under way, 1 failed; now 1.0 req/s, 12 tok/s; 2 s, 5 s to go")


def test_what_is_not_read_yet_is_counted_by_pieces_until_its_end_tells():
    run = LoadRun(records=[RequestRecord(0.0, 0.0, text_times=[0.1]) for _ in range(2)])
    for record in run.records:
        record.unread.extend([(0.2, b"data: "), (0.3, b"data: ")])
    counts = _Counts(run)
    counts.update(1.0)
    assert counts.tokens == 2 * 3
    run.records[0].ended, run.records[0].announced_tokens = 1.5, 10
    run.records[1].ended = 1.5
    counts.update(2.0)
    assert (counts.tokens, counts.done) == (10 + 3, 2)


def test_a_bar_on_a_terminal():
    line = shown(Terminal(), 10, None)[1]
    assert line.startswith(" 30% [######..............] 3 of 10 requests")
    assert len(line.removesuffix("\033[K")) <= 119


def test_a_run_of_some_seconds_goes_by_the_time():
    assert shown(io.StringIO(), None, 4.0)[0].startswith(" 5")
    assert "3 requests, 1 under way" in shown(io.StringIO(), None, 4.0)[0]


def test_a_closed_stream_does_not_end_the_run():
    stream = io.StringIO()
    progress = Progress(1, None, stream, interval=0.01)
    stream.close()
    run = LoadRun(began=time.perf_counter())

    async def look() -> bool:
        task = asyncio.create_task(progress.follow(run))
        await asyncio.sleep(0.05)
        alive = not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return alive

    assert asyncio.run(look())


def test_the_command_shows_it_on_its_terminal_unless_told_not_to():
    def seen(*options: str) -> str:
        ours, theirs = pty.openpty()
        with running([Plan(0.4)]) as server:
            command = ["bench", "serve", "--base-url", server.url, "--num-prompts", "2", "--input-len", "4", *options]
            subprocess.run(
                [sys.executable, "-m", "vllm_cli", *command],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                check=True,
                timeout=30,
            )
        os.close(theirs)
        try:
            return os.read(ours, 65536).decode()
        except OSError:  # nothing was written
            return ""
        finally:
            os.close(ours)

    assert "of 2 requests" in seen()
    assert seen("--disable-tqdm") == ""
