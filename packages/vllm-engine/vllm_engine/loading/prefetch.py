"""Reading files ahead of their use: threads bring them into the system's page cache."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def read_ahead(files: Sequence[Path], *, num_threads: int, block_size: int) -> Iterator[None]:
    """Read ``files`` from beginning to end while the ``with`` block runs; what is not read by its end is left.

    Errors are left to the one who wants the file.

    Args:
        files: in the order of their use.
        num_threads: threads that read, each another block.
        block_size: bytes of one read.
    """
    blocks = _Blocks(files, block_size)
    threads = [
        threading.Thread(target=blocks.read_all, name=f"read-ahead-{i}", daemon=True) for i in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        blocks.stop()
        for thread in threads:
            thread.join()


class _Blocks:
    """The blocks of some files, handed out one by one to whichever thread asks."""

    def __init__(self, files: Sequence[Path], block_size: int) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        sizes = [(file, file.stat().st_size) for file in files]
        self._block_size = min(block_size, max((size for _, size in sizes), default=1) or 1)
        self._blocks = ((file, start) for file, size in sizes for start in range(0, size, self._block_size))

    def stop(self) -> None:
        """Let each thread end after the block that it is at."""
        self._stopped.set()

    def read_all(self) -> None:
        """Read blocks until there are no more."""
        buffer = bytearray(self._block_size)
        while not self._stopped.is_set():
            with self._lock:
                block = next(self._blocks, None)
            if block is None:
                return
            try:
                _read(*block, buffer)
            except OSError:
                continue


def _read(file: Path, start: int, buffer: bytearray) -> None:
    with file.open("rb", buffering=0) as handle:
        handle.seek(start)
        handle.readinto(buffer)
