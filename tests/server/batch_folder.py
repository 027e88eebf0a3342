"""Input and output of a batch in a folder, and the two ways to run it: in this process, or in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.server.conftest import make_context
from tests.server.fake_llm import FakeLLM
from vllm_server.app import build_app, json_urls
from vllm_server.batch.input import BatchInput, open_input
from vllm_server.batch.journal import Journal, RunKey
from vllm_server.batch.output import open_output
from vllm_server.batch.result import WrittenResult
from vllm_server.batch.work import BatchWork

ROOT = Path(__file__).parents[2]
KEY = RunKey("1" * 64, "2" * 64)


def line(custom_id: str = "a", *, url: str = "/v1/completions", method: str = "POST", **body: Any) -> str:
    """A line of the input."""
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


class Folder:
    """Input and output of one batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.input = path / "in.jsonl"
        self.output = path / "out.jsonl"

    def write(self, *lines: str | bytes) -> None:
        self.input.write_bytes(b"".join((item.encode() if isinstance(item, str) else item) + b"\n" for item in lines))

    def results(self, path: Path | None = None) -> list[dict[str, Any]]:
        return [json.loads(item) for item in (path or self.output).read_bytes().splitlines()]

    @property
    def flags(self) -> list[str]:
        """The command line for them, one request at a time."""
        return ["-i", str(self.input), "-o", str(self.output), "--max-inflight", "1"]

    @property
    def partial(self) -> list[Path]:
        return list(self.path.glob("*.partial"))


def start(*flags: str, folder: Path | None = None, **script: Any) -> "subprocess.Popen[str]":
    """``vllm run-batch`` as a process with the scripted engine; ``script`` is that of ``fake_serve``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.server.fake_batch", "demo", *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "FAKE": json.dumps(script),
            "VLLM_LOGGING_LEVEL": "ERROR",
            **({} if folder is None else {"TMPDIR": str(folder)}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def work_on(
    llm: FakeLLM,
    source: BatchInput,
    journal: Journal,
    *,
    in_flight: int = 4,
    results: list[WrittenResult] | None = None,
    **options: Any,
) -> BatchWork:
    """The work of a batch; ``options`` are those of the server's configuration."""
    return BatchWork(
        build_app(make_context(llm, **options)),
        llm,  # type: ignore[arg-type]
        source.lines(),
        journal,
        urls=json_urls(),
        in_flight=in_flight,
        tell=(results if results is not None else []).append,
    )


async def answer(
    folder: Folder, llm: FakeLLM, *lines: str | bytes, in_flight: int = 4, **options: Any
) -> tuple[int, int]:
    """Run the lines. Returns how many answers there are, and how many of them are errors."""
    folder.write(*lines)
    output = open_output(str(folder.output), None, not_over=str(folder.input))
    with open_input(str(folder.input)) as source, Journal(output.place, KEY) as journal:
        await work_on(llm, source, journal, in_flight=in_flight, **options).run()
        await output.deliver(journal)
    return journal.num_answers, journal.num_failed
