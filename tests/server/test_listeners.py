"""While the server runs, nothing listens but its port: neither another one, nor a socket that others can reach."""

import os
import socket
import stat
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.demo_process import DemoProcess


def tree(process: DemoProcess) -> list[psutil.Process]:
    whole = psutil.Process(process.process.pid)
    return [whole, *whole.children(recursive=True)]


def unix_sockets(processes: list[psutil.Process]) -> list[str]:
    """Addresses of the Unix sockets that these processes hold; an abstract one begins with ``@``."""
    inodes = {
        os.readlink(link).removeprefix("socket:[").removesuffix("]")
        for process in processes
        for link in Path(f"/proc/{process.pid}/fd").iterdir()
        if link.is_symlink() and os.readlink(link).startswith("socket:")
    }
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [row[7] for row in rows if row[6] in inodes and len(row) > 7]


def check(process: DemoProcess, port: int) -> None:
    processes = tree(process)
    assert len(processes) == 2
    inet = [found for member in processes for found in member.net_connections("inet")]
    listening = {(found.laddr.ip, found.laddr.port) for found in inet if found.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", port)}
    # No UDP, no raw sockets: whatever has no state is not TCP.
    assert [found for found in inet if found.status == psutil.CONN_NONE] == []
    for address in unix_sockets(processes):
        assert not address.startswith("@"), address  # anyone on the machine may connect to these
        path = Path(address)
        assert path.is_relative_to(process.folder), address
        folder = path.parent.stat()
        assert stat.S_IMODE(folder.st_mode) & 0o077 == 0, (address, oct(folder.st_mode))
        assert folder.st_uid == os.getuid()


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="reads the tables of Linux")
def test_nothing_listens_but_the_api_port(tmp_path: Path) -> None:
    process = DemoProcess(tmp_path)
    try:
        port = int(process.url.rpartition(":")[2])
        check(process, port)
        body = {"prompt": "Hello", "max_tokens": 4}
        assert httpx.post(f"{process.url}/v1/completions", json=body, timeout=30).status_code == 200
        check(process, port)
        assert unix_sockets(tree(process)) != []  # the engine's: the test has looked at the right place
        other = next(
            (address.address for found in psutil.net_if_addrs().values() for address in found
             if address.family == socket.AF_INET and not address.address.startswith("127.")), None,
        )  # fmt: skip
        if other is not None:
            with pytest.raises(OSError), socket.create_connection((other, port), timeout=2):
                pass
    finally:
        process.clean_up()
