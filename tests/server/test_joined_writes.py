"""What leaves a connection, and when: pieces of one turn of the event loop together, all of them, in order."""

import asyncio
from urllib.parse import urlsplit

from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM
from vllm_server.running.joined_writes import MOST_BYTES, JoinedTransport, WriteTurn


class Wire(asyncio.Transport):
    """A transport that notes what reaches it."""

    def __init__(self, log: list[tuple[str, bytes]], name: str = "") -> None:
        super().__init__()
        self.log, self.name, self.closing = log, name, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.log.append((self.name, bytes(data)))

    def write_eof(self) -> None:
        self.log.append((self.name, b"EOF"))

    def close(self) -> None:
        self.closing = True
        self.log.append((self.name, b"CLOSED"))

    def is_closing(self) -> bool:
        return self.closing


async def test_a_turn_is_one_write_of_each_connection() -> None:
    log: list[tuple[str, bytes]] = []
    turn = WriteTurn()
    a, b = (JoinedTransport(Wire(log, name), turn) for name in "ab")
    a.write(b"1")
    b.write(b"2")
    a.write(b"3")
    assert log == []
    await asyncio.sleep(0)
    assert log == [("a", b"13"), ("b", b"2")]
    b.write(b"4")
    await asyncio.sleep(0)
    assert log[2:] == [("b", b"4")]


async def test_all_tasks_of_a_turn_write_before_anything_leaves() -> None:
    log: list[tuple[str, bytes]] = []
    turn = WriteTurn()
    started = asyncio.Event()
    seen: list[int] = []

    async def stream(transport: JoinedTransport) -> None:
        await started.wait()
        seen.append(len(log))
        transport.write(b"chunk")

    tasks = [asyncio.create_task(stream(JoinedTransport(Wire(log), turn))) for _ in range(8)]
    await asyncio.sleep(0)
    started.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert seen == [0] * 8
    assert len(log) == 8


async def test_much_leaves_at_once_so_that_the_transport_can_tell_to_wait() -> None:
    log: list[tuple[str, bytes]] = []
    transport = JoinedTransport(Wire(log), WriteTurn())
    half = bytes(MOST_BYTES // 2)
    transport.write(half)
    assert log == []
    transport.write(half)
    assert log == [("", half + half)]
    transport.write(b"rest")
    await asyncio.sleep(0)
    assert log[1:] == [("", b"rest")]


async def test_nothing_is_lost_before_the_end() -> None:
    log: list[tuple[str, bytes]] = []
    turn = WriteTurn()
    wires = [Wire(log, name) for name in ("closed", "ended", "gone")]
    closed, ended, gone = (JoinedTransport(wire, turn) for wire in wires)
    closed.write(b"1")
    closed.close()
    ended.write(b"2")
    ended.write_eof()
    assert log == [("closed", b"1"), ("closed", b"CLOSED"), ("ended", b"2"), ("ended", b"EOF")]
    gone.write(b"3")
    wires[2].close()  # by the client
    await asyncio.sleep(0)
    assert log[4:] == [("gone", b"CLOSED")]


async def test_an_answer_comes_in_one_piece() -> None:
    with running(make_context(FakeLLM())) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for _ in range(2):  # the second one on the same connection
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            piece = await asyncio.wait_for(reader.read(65536), 10)
            head, _, body = piece.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body.startswith(b"{") and body.endswith(b"}")
        writer.close()
        await writer.wait_closed()
