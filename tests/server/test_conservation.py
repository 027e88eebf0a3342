"""After many requests of all kinds, what the server counted is what its client counted, to the last token."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.demo_process import DemoProcess
from tests.server.ledger import LONG_STREAM, Ledger


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DemoProcess]:
    """A server; a parameter is the number of its API processes."""
    flags = ["--enable-sleep-mode", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    flags += ["--api-server-count", str(getattr(request, "param", 1))]
    process = DemoProcess(tmp_path, *flags, VLLM_SERVER_DEV_MODE="1")
    yield process
    process.clean_up()


async def run(demo: DemoProcess, ledger: Ledger, *, rounds: int, mixed: int, running: int, waiting: int) -> None:
    async with ledger.http:
        before = await ledger.page()
        assert before["vllm:prompt_tokens_total"] == 0
        answer = await ledger.http.post("/tokenize", json={"prompt": LONG_STREAM["prompt"]})
        ledger.answers["/tokenize", "2xx"] += 1
        for _ in range(rounds):
            await ledger.mixed(mixed)
            await ledger.leave(running, waiting)
            ledger.unstarted_tokens += waiting * answer.json()["count"]
        await ledger.balance()
        assert ledger.finished["stop"] and ledger.finished["length"] and ledger.finished["abort"]


async def test_nothing_is_lost_and_nothing_is_counted_twice(demo: DemoProcess) -> None:
    await run(demo, Ledger(demo.url, 1), rounds=3, mixed=45, running=3, waiting=2)


@pytest.mark.slow
@pytest.mark.parametrize("demo", [1, 2], indirect=True)
async def test_nothing_is_lost_of_two_thousand_requests(demo: DemoProcess) -> None:
    await run(demo, Ledger(demo.url, 2), rounds=20, mixed=90, running=6, waiting=4)
