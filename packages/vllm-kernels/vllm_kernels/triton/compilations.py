"""How many kernels were compiled, and how many were found compiled on disk: by Triton, ours and those of torch."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton import knobs

FOLDER_VARIABLE = "TRITON_CACHE_DIR"


class Compilations:
    """A count from ``start`` to ``stop``, of all threads of the process.

    Args:
        tell: is called with a kernel's name and the seconds that it took, whenever one had to be compiled.
    """

    def __init__(self, tell: Callable[[str, float], None] | None = None) -> None:
        self.compiled = 0
        self.from_cache = 0
        self.seconds = 0.0
        """That both took, of all threads together."""
        self.tell = tell
        self._lock = threading.Lock()
        self._before: Any = None

    def start(self) -> None:
        """Begin to listen to Triton, beside whoever does already."""
        self._before = knobs.compilation.listener
        knobs.compilation.listener = self._listen

    def stop(self) -> None:
        """Listen no more. Who began after this one and goes on is left alone, and this one counts for it."""
        if knobs.compilation.listener == self._listen:
            knobs.compilation.listener = self._before

    def _listen(self, *, src: Any, times: Any, cache_hit: bool, **others: Any) -> None:
        if self._before is not None:
            self._before(src=src, times=times, cache_hit=cache_hit, **others)
        seconds = times.total / 1e6
        with self._lock:
            self.compiled += not cache_hit
            self.from_cache += cache_hit
            self.seconds += seconds
        if self.tell is not None and not cache_hit:
            self.tell(src.name, seconds)


def keep_in(folder: Path) -> Path:
    """Have compiled kernels kept in ``folder``, unless the environment names another. Returns the one that it is.

    Only its owner may enter a folder that is made here: what is in it runs on the GPU. Before anything is compiled.
    Raises ``OSError`` where it cannot be made or written.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder
